//! OTLP over HTTP, on the runtime that everything else uses.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::{runtime::Handle, time::timeout};

use super::target::{Target, TargetError};

/// Longest answer that is read: a collector has little to say.
const MAX_ANSWER: usize = 1 << 20;

type Pool = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Sends batches. The SDK's batches leave from threads without a runtime, so each exchange
/// is a task of the runtime that this was made in, and bounded in time.
#[derive(Clone)]
pub(super) struct Http {
    pool: Pool,
    runtime: Handle,
    timeout: Duration,
}

impl Http {
    /// Call inside the runtime.
    pub(super) fn new(target: &Target) -> Result<Self, TargetError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(target.timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(target.http_tls()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Ok(Self { pool, runtime: Handle::current(), timeout: target.timeout })
    }

    async fn exchange(self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let answer = self.pool.request(request.map(Full::new)).await?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        timeout(self.timeout, exchange).await?
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.spawn(self.clone().exchange(request)).await?
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}
