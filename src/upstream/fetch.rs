//! Reading a small document that the operator named: not a client's request, so nothing of
//! a client goes into it, and no redirect leads elsewhere.

use std::{io::Read, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header::ACCEPT};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::dial::client_config;

/// Reads documents over HTTP.
#[derive(Clone)]
pub struct Fetcher(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Fetcher {
    /// Trusts what the machine trusts.
    ///
    /// # Errors
    /// No TLS settings can be made.
    pub fn with_native_roots() -> anyhow::Result<Self> {
        Ok(Self::new(&Arc::new(client_config(None)?)))
    }

    pub(super) fn new(tls: &Arc<ClientConfig>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config((**tls).clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        // Minutes lie between two reads: a connection that is kept would be stale.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    /// The document at `url`, of at most `max` bytes, within `limit`. Cancel-safe.
    ///
    /// # Errors
    /// Why there is none; nothing of the document.
    pub async fn get(&self, url: &Uri, max: usize, limit: Duration) -> Result<Bytes, String> {
        let read = async {
            let request = Request::get(url.clone())
                .header(ACCEPT, "application/json")
                .body(Empty::new())
                .map_err(|error| error.to_string())?;
            let response =
                self.0.request(request).await.map_err(|error| format!("no connection: {error}"))?;
            if !response.status().is_success() {
                return Err(format!("status {}", response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), max).collect().await;
            body.map(http_body_util::Collected::to_bytes)
                .map_err(|_| format!("cut off, or longer than {max} bytes"))
        };
        timeout(limit, read).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

/// The file at `path`, of at most `max` bytes, within `limit`: a file system may hang, and a
/// worker of the runtime must not.
///
/// # Errors
/// Why there is none; nothing of the file.
pub async fn read_text(path: PathBuf, max: usize, limit: Duration) -> Result<Bytes, String> {
    let read = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path).map_err(|error| error.kind().to_string())?;
        let mut text = Vec::new();
        let end = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        file.take(end).read_to_end(&mut text).map_err(|error| error.kind().to_string())?;
        if text.len() > max { Err("too large".to_owned()) } else { Ok(Bytes::from(text)) }
    });
    match timeout(limit, read).await {
        Ok(Ok(text)) => text,
        Ok(Err(_)) | Err(_) => Err(format!("not read within {limit:?}")),
    }
}
