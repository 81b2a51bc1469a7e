//! Which path and method leads where.

use hyper::body::Incoming;
use hyper::header::{CONNECTION, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Version};
use serde::Serialize;
use std::rc::Rc;
use std::time::Instant;

use super::super::connections::Open;
use super::super::errors::retry_after;
use super::super::inflate::Coding;
use super::super::local::Local;
use super::super::models::ModelName;
use super::models::Control;
use super::reply::{self, Pieces, Refusal, Reply};
use super::{Serves, body, guard, infer, models};
use crate::error::ErrorCode;
use crate::metrics::CONTENT_TYPE;
use crate::wire::bounded::MAX_PATH_BYTES;

/// What the server says it can do beyond the protocol.
const EXTENSIONS: [&str; 5] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
];

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Server,
    Live,
    Ready,
    Model(ModelName, ModelPart),
    /// Of all models.
    Statistics,
    Index,
    Control(Control, String),
    Metrics,
    Unknown,
}

/// What of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelPart {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
}

/// Answers a request.
pub(super) async fn answer(
    local: &Rc<Local>,
    serves: Serves,
    open: Open,
    request: Request<Incoming>,
) -> Reply {
    let asked = tracing::enabled!(tracing::Level::DEBUG).then(|| {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        (
            Instant::now(),
            open.connection().caller.number(),
            method,
            path,
        )
    });
    let is_head = request.method() == Method::HEAD;
    let is_http2 = request.version() == Version::HTTP_2;
    let coding = Coding::of_answers(request.headers());
    // The request counts as open until its answer is packed, too.
    let coding = coding.map(|coding| (coding, open.connection().begin()));
    let mut reply = match dispatch(local, serves, open, request).await {
        Ok(reply) => reply,
        Err(refusal) => refusal.into(),
    };
    if let Some((coding, open)) = coding {
        let caller = &open.connection().caller;
        let packed = Box::pin(coding.packed(local, caller, reply)).await;
        reply = packed.unwrap_or_else(Refusal::into);
    }
    if is_head {
        // Over HTTP/2 the body would be sent.
        reply::leave_out_body(&mut reply);
    }
    if is_http2 {
        // There a request ends by itself, and the header is an error.
        reply.headers_mut().remove(CONNECTION);
    }
    if let Some((started, caller, method, path)) = asked {
        let status = reply.status().as_u16();
        let elapsed_us = started.elapsed().as_micros() as u64;
        tracing::debug!(caller, %method, path, status, elapsed_us, "answered over HTTP");
    }
    reply
}

/// The place that a request is for, if it may ask for that.
fn place_of(local: &Local, serves: Serves, request: &Request<Incoming>) -> Result<Place, Refusal> {
    guard::check(&local.shared, request)?;
    let place = Place::of(request.uri().path())?.on(serves);
    let allowed = place.allowed();
    let method = match *request.method() {
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    if allowed.is_empty() {
        let path = request.uri().path();
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!(
                "{path}: there is no such path here{}",
                match serves {
                    Serves::Metrics => "; metrics are at /metrics",
                    Serves::All | Serves::Protocol => "; the protocol's paths begin with /v2",
                }
            ),
        ));
    }
    if !allowed.split(", ").any(|name| name == method.as_str()) {
        let path = request.uri().path();
        return Err(Refusal::method(request.method(), path, allowed));
    }
    Ok(place)
}

async fn dispatch(
    local: &Rc<Local>,
    serves: Serves,
    open: Open,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let place = match place_of(local, serves, &request) {
        Ok(place) => place,
        Err(refusal) => return Err(refusal.leaving(request.into_body())),
    };
    match place {
        Place::Model(model, ModelPart::Infer) => infer::answer(local, open, model, request).await,
        // What these need is not set aside for each inference.
        place => Box::pin(serve(local, open, place, request)).await,
    }
}

/// Answers a request that is no inference.
async fn serve(
    local: &Rc<Local>,
    open: Open,
    place: Place,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    match place {
        Place::Index => models::index(local, &open, request).await,
        Place::Control(control, name) => {
            models::control(local, &open, (control, name), request).await
        }
        place => {
            body::leave(request.into_body());
            tell(local, &open, place).await
        }
    }
}

/// Answers a request that has no body.
async fn tell(local: &Local, open: &Open, place: Place) -> Result<Reply, Refusal> {
    match place {
        Place::Server => Ok(server()),
        Place::Live => live(local, open).await,
        Place::Ready => ready(local, open).await,
        Place::Model(model, ModelPart::Metadata) => models::metadata(local, open, &model).await,
        Place::Model(model, ModelPart::Ready) => models::ready(local, open, &model).await,
        Place::Model(model, ModelPart::Config) => models::config(local, open, &model).await,
        Place::Model(model, ModelPart::Statistics) => {
            models::statistics(local, open, Some(&model)).await
        }
        Place::Statistics => models::statistics(local, open, None).await,
        Place::Metrics => metrics(local, open).await,
        Place::Model(_, ModelPart::Infer) | Place::Index | Place::Control(..) | Place::Unknown => {
            Err(Refusal::new(StatusCode::NOT_FOUND, "there is nothing here"))
        }
    }
}

impl Place {
    fn of(path: &str) -> Result<Place, Refusal> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let parts: Vec<&str> = path.split('/').collect();
        let model = |name: &str, version: Option<&str>, part| -> Result<Place, Refusal> {
            if name.len() > MAX_PATH_BYTES {
                let message = format!("a model's name has at most {MAX_PATH_BYTES} bytes");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
            }
            let name = ModelName {
                name: decoded(name)?,
                version: version.map(decoded).transpose()?,
            };
            Ok(Place::Model(name, part))
        };
        match parts.as_slice() {
            ["", "v2"] => Ok(Place::Server),
            ["", "v2", "health", "live"] => Ok(Place::Live),
            ["", "v2", "health", "ready"] => Ok(Place::Ready),
            ["", "metrics"] => Ok(Place::Metrics),
            ["", "v2", "models", "stats"] => Ok(Place::Statistics),
            ["", "v2", "models", name, rest @ ..] if !name.is_empty() => {
                let (version, rest) = match rest {
                    ["versions", version, rest @ ..] => (Some(*version), rest),
                    rest => (None, rest),
                };
                match rest {
                    [] => model(name, version, ModelPart::Metadata),
                    ["ready"] => model(name, version, ModelPart::Ready),
                    ["stats"] => model(name, version, ModelPart::Statistics),
                    ["config"] => model(name, version, ModelPart::Config),
                    ["infer"] => model(name, version, ModelPart::Infer),
                    _ => Ok(Place::Unknown),
                }
            }
            ["", "v2", "repository", "index"] => Ok(Place::Index),
            ["", "v2", "repository", "models", name, "load"] => {
                Ok(Place::Control(Control::Load, decoded(name)?))
            }
            ["", "v2", "repository", "models", name, "unload"] => {
                Ok(Place::Control(Control::Unload, decoded(name)?))
            }
            _ => Ok(Place::Unknown),
        }
    }

    /// The place, if a port serves it.
    fn on(self, serves: Serves) -> Place {
        let is_served = match serves {
            Serves::All => true,
            Serves::Protocol => self != Place::Metrics,
            Serves::Metrics => self == Place::Metrics,
        };
        match is_served {
            true => self,
            false => Place::Unknown,
        }
    }

    /// The methods of a place, as `Allow` has them; none for one that is not there.
    fn allowed(&self) -> &'static str {
        match self {
            Place::Unknown => "",
            Place::Model(_, ModelPart::Infer) | Place::Index | Place::Control(..) => "POST",
            Place::Server | Place::Live | Place::Ready => "GET",
            Place::Model(..) | Place::Statistics | Place::Metrics => "GET",
        }
    }
}

/// A segment of a path, its `%xx` decoded.
fn decoded(segment: &str) -> Result<String, Refusal> {
    if !segment.contains('%') {
        return Ok(segment.to_owned());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            let message = format!("{segment:?}: expected two hexadecimal digits behind each %");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("{segment:?}: its %xx make no UTF-8");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })
}

fn server() -> Reply {
    #[derive(Serialize)]
    struct About {
        name: &'static str,
        version: &'static str,
        extensions: [&'static str; 5],
    }
    reply::json(
        StatusCode::OK,
        &About {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            extensions: EXTENSIONS,
        },
    )
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// What a probe is told; one that fails says when to come again, as all else does that is so for now.
fn probed<T: Serialize>(is_so: bool, told: &T) -> Reply {
    if is_so {
        return reply::json(StatusCode::OK, told);
    }
    let mut reply = reply::json(StatusCode::SERVICE_UNAVAILABLE, told);
    if let Some(seconds) = retry_after(ErrorCode::Unavailable) {
        reply.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    reply
}

async fn live(local: &Local, open: &Open) -> Result<Reply, Refusal> {
    let live = local.health(&open.connection().caller).await.is_some();
    Ok(probed(live, &Live { live }))
}

async fn ready(local: &Local, open: &Open) -> Result<Reply, Refusal> {
    let ready = local.is_ready(&open.connection().caller).await;
    Ok(probed(ready, &Ready { ready }))
}

async fn metrics(local: &Local, open: &Open) -> Result<Reply, Refusal> {
    let text = local.metrics(&open.connection().caller).await?;
    let pieces = Pieces::new(vec![text.into()]);
    Ok(reply::of_pieces(StatusCode::OK, CONTENT_TYPE, pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, version: Option<&str>, part: ModelPart) -> Place {
        let version = version.map(str::to_owned);
        let name = name.to_owned();
        Place::Model(ModelName { name, version }, part)
    }

    #[test]
    fn a_probe_that_fails_has_503_says_so_and_when_to_come_again() {
        let told = probed(true, &Live { live: true });
        assert_eq!(
            (told.status(), told.headers().get(RETRY_AFTER)),
            (StatusCode::OK, None)
        );
        let told = probed(false, &Live { live: false });
        assert_eq!(told.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(told.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn a_path_leads_to_its_place() {
        for (path, place) in [
            ("/v2", Place::Server),
            ("/v2/", Place::Server),
            ("/v2/health/live", Place::Live),
            ("/v2/health/ready", Place::Ready),
            ("/v2/models/m", model("m", None, ModelPart::Metadata)),
            ("/v2/models/m/ready", model("m", None, ModelPart::Ready)),
            (
                "/v2/models/m.tokens/infer",
                model("m.tokens", None, ModelPart::Infer),
            ),
            (
                "/v2/models/a%2Fb/versions/7/infer",
                model("a/b", Some("7"), ModelPart::Infer),
            ),
            ("/v2/repository/index", Place::Index),
            (
                "/v2/repository/models/m/load",
                Place::Control(Control::Load, "m".to_owned()),
            ),
            ("/metrics", Place::Metrics),
            ("/v2/models/stats", Place::Statistics),
            (
                "/v2/models/m/stats",
                model("m", None, ModelPart::Statistics),
            ),
            ("/", Place::Unknown),
            ("/v1", Place::Unknown),
            ("/v2/models//infer", Place::Unknown),
            ("/v2/models/m/versions", Place::Unknown),
            ("/v2/models/m/infer/more", Place::Unknown),
        ] {
            assert_eq!(Place::of(path).unwrap(), place, "{path}");
        }
        for path in [
            "/v2/models/%",
            "/v2/models/%4",
            "/v2/models/%zz",
            "/v2/models/%ff",
        ] {
            assert!(Place::of(path).is_err(), "{path}");
        }
    }
}
