//! A small HTTP client that knows nothing of ringspan.

use ::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{task::AbortHandle, time::timeout};

pub use super::net::PATIENCE;
use super::net::connect;

/// An answer as a whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} no JSON ({error}): {:?}", self.status, self.body))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Seconds of `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        retry_after(&self.headers)
    }
}

/// Seconds of `Retry-After`.
pub fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get("retry-after")?.to_str().ok()?.parse().ok()
}

/// An answer whose body still comes. Dropping it drops the connection.
pub struct Streaming {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    buffer: String,
    connection: AbortHandle,
}

/// `(host:port, path and query)` of an `http://` URL.
pub fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://")).unwrap_or(url);
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

/// Sends a request and returns as soon as the head of the answer is there.
pub async fn open(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Streaming, String> {
    let (host, path) = split(url);
    let mut request = Request::builder()
        .method(method)
        .uri(if path.is_empty() { "/" } else { path })
        .header("host", host);
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let answer = async {
        let stream = connect(host).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).ok();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        let connection = tokio::spawn(connection).abort_handle();
        let answer =
            sender.send_request(request).await.map_err(|error| format!("request: {error}"))?;
        let (head, body) = answer.into_parts();
        let (status, headers) = (head.status, head.headers);
        Ok(Streaming { status, headers, body, buffer: String::new(), connection })
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(format!("no answer: {url}")))
}

/// Sends a request and reads the whole answer.
pub async fn request(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Answer, String> {
    let mut answer = open(method, url, headers, body).await?;
    let body = answer.body().await.map_err(|error| format!("{error}: {url}"))?;
    Ok(Answer { status: answer.status, headers: answer.headers.clone(), body })
}

/// `GET` that gets some answer.
pub async fn get(url: &str, headers: &[(&str, &str)]) -> Answer {
    request(Method::GET, url, headers, "").await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// `POST` of JSON that gets some answer.
pub async fn post(url: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/json"));
    request(Method::POST, url, &headers, body.to_string())
        .await
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}

impl Streaming {
    /// The whole body.
    pub async fn body(&mut self) -> Result<Bytes, String> {
        let whole = async {
            let mut body = Vec::new();
            while let Some(frame) = self.body.frame().await {
                let frame = frame.map_err(|error| format!("body: {error}"))?;
                body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
            Ok(body.into())
        };
        timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err("endless body".to_owned()))
    }

    /// The JSON of the next server-sent event; None at the end of the stream.
    pub async fn event(&mut self) -> Result<Option<Value>, String> {
        timeout(PATIENCE, self.next_event()).await.map_err(|_| "no event in time".to_owned())?
    }

    async fn next_event(&mut self) -> Result<Option<Value>, String> {
        loop {
            while let Some(end) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..end + 2).collect();
                let data: Vec<_> =
                    event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                match data.concat().trim() {
                    // A comment, or the mark of the end that some servers send.
                    "" | "[DONE]" => {}
                    json => return serde_json::from_str(json).map(Some).map_err(|e| e.to_string()),
                }
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| format!("body: {error}"))?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            // The tests send and quote ASCII only, so no character is cut in two.
            self.buffer.push_str(&String::from_utf8_lossy(data).replace("\r\n", "\n"));
        }
    }

    /// All events up to the end of the stream.
    pub async fn events(mut self) -> Result<Vec<Value>, String> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await? {
            events.push(event);
        }
        Ok(events)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
