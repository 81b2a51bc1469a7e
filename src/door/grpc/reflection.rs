//! Reflection, which tells clients such as grpcurl what calls there are: tonic's service over our descriptions.

use std::pin::Pin;

use hyper::body::Incoming;
use hyper::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic_reflection::server::{Builder, v1, v1alpha};

use super::messages::DESCRIPTORS;
use super::reply::{Reply, ReplyBody};
use crate::door::connections::Open;
use crate::error::{Error, Result};

/// The services, as paths have them.
const V1: &str = "/grpc.reflection.v1.ServerReflection/";
const V1_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/";

type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;
type Answers = Box<dyn Fn(Request<Incoming>) -> Answer>;

/// The service in both of its versions: many clients know but the older one.
pub(in crate::door) struct Reflection {
    v1: Answers,
    v1_alpha: Answers,
}

impl Reflection {
    /// # Errors
    /// `INTERNAL` if our descriptions are broken.
    pub(in crate::door) fn new() -> Result<Reflection> {
        let broken = |e| Error::internal(format!("the description of the gRPC service: {e}"));
        let described = || {
            Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        Ok(Reflection {
            v1: answers(described().build_v1().map_err(broken)?),
            v1_alpha: answers_alpha(described().build_v1alpha().map_err(broken)?),
        })
    }

    /// Whether a call is of this service.
    pub(super) fn serves(&self, path: &str) -> bool {
        path.starts_with(V1) || path.starts_with(V1_ALPHA)
    }

    /// Answers such a call, which ends when the server has stopped.
    pub(super) async fn answer(&self, open: Open, request: Request<Incoming>) -> Reply {
        let reply = match request.uri().path().starts_with(V1) {
            true => (self.v1)(request).await,
            false => (self.v1_alpha)(request).await,
        };
        let told = async move {
            let nothing = std::future::pending::<()>();
            open.connection().unless_told(nothing).await;
        };
        reply.map(|body| ReplyBody::Tonic(body, Box::pin(told)))
    }
}

fn answers<T: v1::ServerReflection>(service: v1::ServerReflectionServer<T>) -> Answers {
    Box::new(move |request| {
        let answer = service.clone().call(request);
        Box::pin(async move {
            let Ok(reply) = answer.await;
            reply
        })
    })
}

fn answers_alpha<T: v1alpha::ServerReflection>(
    service: v1alpha::ServerReflectionServer<T>,
) -> Answers {
    Box::new(move |request| {
        let answer = service.clone().call(request);
        Box::pin(async move {
            let Ok(reply) = answer.await;
            reply
        })
    })
}
