//! Who may ask at all: pages of other sites may not, whatever a browser was made to believe.

use std::net::IpAddr;

use hyper::header::{HOST, ORIGIN};
use hyper::{Request, StatusCode, Version};

use super::super::shared::Shared;
use super::reply::Refusal;

/// # Errors
/// 400 for HTTP/1.1 without a `Host`, or with two, of which a proxy may have gone by the other (RFC 9112, 3.2); 403 for
/// the page of another site (`Origin`), and on a loopback address for a name that is not this machine's (`Host`): a site
/// may have its own name lead here.
pub(super) fn check<B>(shared: &Shared, request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    let forbidden = |message: String| Err(Refusal::new(StatusCode::FORBIDDEN, message));
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!(
                "the request has {hosts} headers `Host`, expected one: the address that it was sent to"
            ),
        ));
    }
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(HOST).and_then(|host| host.to_str().ok()),
    };
    if let Some(host) = host
        && shared.loopback
        && !is_local(host)
    {
        return forbidden(format!(
            "Host {host:?} is not a name of this machine's own; a proxy in front should send the address that it connects to"
        ));
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let own = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .is_some_and(|(_, of)| host.is_some_and(|host| of.eq_ignore_ascii_case(host)));
    if own {
        return Ok(());
    }
    forbidden(format!(
        "Origin {origin:?} is another site; only pages of this server's own address may ask it"
    ))
}

/// Whether it is an address, or the name that every machine has for itself.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let ends_with = |end: &str| {
        let start = name.len().checked_sub(end.len());
        let rest = start.and_then(|start| name.get(start..));
        rest.is_some_and(|rest| rest.eq_ignore_ascii_case(end))
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_another_sites_is_told_from_this_machines() {
        for host in [
            "localhost",
            "LocalHost:8000",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:8000",
            "[::1]",
            "a.localhost:1",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "evil.org",
            "evil.org:8000",
            "localhost.evil.org",
            "",
            "127.0.0.1.evil.org",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
