//! Where a server is: `http://HOST:PORT` and its like.

use anyhow::{Context, Result, ensure};

/// A server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `HOST:PORT`.
    pub authority: String,
    /// What the paths of the protocol are below: nothing, or `/FOLDER`.
    pub folder: String,
}

impl Url {
    /// Reads a URL that begins with one of these, the first of which is the usual one.
    ///
    /// # Errors
    /// If it does not, or has no host.
    pub fn read(url: &str, schemes: &[&str]) -> Result<Url> {
        let usual = schemes.first().copied().unwrap_or_default();
        let expected = format!("expected {usual}HOST:PORT, as in {usual}localhost:8000");
        let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.with_context(|| format!("{url:?}: {expected}"))?;
        let (host, folder) = rest.split_once('/').unwrap_or((rest, ""));
        ensure!(
            !host.is_empty() && !host.contains(['@', '?', '#']),
            "{url:?}: {expected}"
        );
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let folder = match folder.trim_end_matches('/') {
            "" => String::new(),
            folder => format!("/{folder}"),
        };
        Ok(Url { authority, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (url, authority, folder) in [
            ("http://localhost:8000", "localhost:8000", ""),
            ("http://localhost", "localhost:80", ""),
            ("http://[::1]:9/", "[::1]:9", ""),
            (
                "http://10.0.0.1:80/some/place/",
                "10.0.0.1:80",
                "/some/place",
            ),
        ] {
            let read = Url::read(url, &["http://"]).unwrap();
            assert_eq!((&*read.authority, &*read.folder), (authority, folder));
        }
        for url in [
            "https://localhost",
            "localhost:8000",
            "http://",
            "http://a@b",
            "tcp://localhost:1",
        ] {
            let e = Url::read(url, &["http://"]).unwrap_err().to_string();
            assert!(e.contains("http://HOST:PORT"), "{e}");
        }
        let read = Url::read("grpc://a:1", &["grpc://", "http://"]).unwrap();
        assert_eq!(read.authority, "a:1");
    }
}
