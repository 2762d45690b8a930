//! A WebSocket client built on tungstenite.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use super::{
    http::{PATIENCE, retry_after},
    net::{TcpStream, connect},
};

/// More than any limit that a test configures.
const MAX_MESSAGE_BYTES: usize = 128 << 20;

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    Binary(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    /// A close frame with its code and reason.
    Close(u16, String),
    /// The connection ended without one.
    Lost(String),
    /// Nothing came in time.
    Silence,
}

impl Received {
    pub fn json(&self) -> Value {
        match self {
            Self::Text(text) => serde_json::from_str(text).unwrap(),
            other => panic!("no event: {other:?}"),
        }
    }

    /// Whether nothing follows.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Close(..) | Self::Lost(_))
    }
}

/// An upgrade that was not granted.
#[derive(Debug)]
pub struct Refused {
    /// 0 if there was no answer at all.
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Refused {
    fn nothing(why: impl std::fmt::Display) -> Self {
        Self { status: 0, headers: HeaderMap::new(), body: why.to_string() }
    }

    pub fn retry_after(&self) -> Option<u64> {
        retry_after(&self.headers)
    }
}

/// An open WebSocket.
#[derive(Debug)]
pub struct Ws {
    stream: WebSocketStream<TcpStream>,
    /// Of the 101.
    pub headers: HeaderMap,
}

impl Ws {
    /// Upgrades at `url` (`http://` or `ws://`).
    pub async fn connect(url: &str, headers: &[(&str, &str)]) -> Result<Self, Box<Refused>> {
        timeout(PATIENCE, Self::upgrade(url, headers))
            .await
            .unwrap_or_else(|_| Err(Box::new(Refused::nothing("no answer to the upgrade in time"))))
    }

    /// Upgrades at `url`, which must be granted.
    pub async fn open(url: &str, headers: &[(&str, &str)]) -> Self {
        Self::connect(url, headers).await.unwrap_or_else(|refused| panic!("{url}: {refused:?}"))
    }

    async fn upgrade(url: &str, headers: &[(&str, &str)]) -> Result<Self, Box<Refused>> {
        let (host, _) = super::http::split(url);
        let mut request = url.replacen("http://", "ws://", 1).into_client_request().unwrap();
        for &(name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        let tcp = connect(host).await.map_err(|error| Box::new(Refused::nothing(error)))?;
        tcp.set_nodelay(true).ok();
        let config = WebSocketConfig::default()
            .read_buffer_size(16 << 10)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        match client_async_with_config(request, tcp, Some(config)).await {
            Ok((stream, answer)) => Ok(Self { stream, headers: answer.headers().clone() }),
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                let body = String::from_utf8_lossy(body).into_owned();
                let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
                Err(Box::new(Refused { status, headers, body }))
            }
            Err(error) => Err(Box::new(Refused::nothing(error))),
        }
    }

    /// A header of the 101, or "".
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub async fn send(&mut self, message: Message) -> Result<(), String> {
        self.stream.send(message).await.map_err(|error| error.to_string())
    }

    pub async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await.unwrap();
    }

    /// Sends a text; false if nobody is there to take it.
    pub async fn text_or_gone(&mut self, text: String) -> bool {
        self.send(Message::text(text)).await.is_ok()
    }

    /// The same for bytes.
    pub async fn binary_or_gone(&mut self, payload: Bytes) -> bool {
        self.send(Message::Binary(payload)).await.is_ok()
    }

    pub async fn json(&mut self, event: &Value) {
        self.text(event.to_string()).await;
    }

    /// Sends a close frame and does not wait for the answer.
    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.stream.close(Some(frame)).await.ok();
    }

    /// The next message of any kind, at most [`PATIENCE`] away.
    pub async fn next(&mut self) -> Received {
        self.next_within(PATIENCE).await
    }

    /// The next message of any kind, at most `limit` away.
    pub async fn next_within(&mut self, limit: Duration) -> Received {
        match timeout(limit, self.stream.next()).await {
            Ok(message) => received(message),
            Err(_) => Received::Silence,
        }
    }

    /// What is there already.
    pub fn next_now(&mut self) -> Option<Received> {
        self.stream.next().now_or_never().map(received)
    }

    /// The next data message or end.
    pub async fn data(&mut self) -> Received {
        loop {
            match self.next().await {
                Received::Ping(_) | Received::Pong(_) => {}
                other => return other,
            }
        }
    }

    /// The text of the next data message, which must be one.
    pub async fn expect_text(&mut self) -> String {
        match self.data().await {
            Received::Text(text) => text,
            other => panic!("a text was due, not {other:?}"),
        }
    }

    /// How the connection ends, whatever comes before.
    pub async fn end(&mut self) -> Received {
        loop {
            match self.next().await {
                Received::Silence => return Received::Silence,
                end if end.is_end() => return end,
                _ => {}
            }
        }
    }

    /// Lets `write` put bytes of its own on the wire.
    pub async fn raw(mut self, write: impl AsyncFnOnce(&mut TcpStream)) -> Self {
        write(self.stream.get_mut()).await;
        self
    }

    /// Two halves, to read while writing.
    pub fn split(
        self,
    ) -> (
        futures_util::stream::SplitSink<WebSocketStream<TcpStream>, Message>,
        futures_util::stream::SplitStream<WebSocketStream<TcpStream>>,
    ) {
        self.stream.split()
    }
}

fn received(message: Option<Result<Message, Error>>) -> Received {
    match message {
        Some(Ok(Message::Text(text))) => Received::Text(text.as_str().to_owned()),
        Some(Ok(Message::Binary(payload))) => Received::Binary(payload),
        Some(Ok(Message::Ping(payload))) => Received::Ping(payload),
        Some(Ok(Message::Pong(payload))) => Received::Pong(payload),
        Some(Ok(Message::Close(frame))) => match frame {
            Some(frame) => Received::Close(frame.code.into(), frame.reason.as_str().to_owned()),
            None => Received::Close(1005, String::new()),
        },
        Some(Ok(Message::Frame(_))) => unreachable!("frames are not asked for"),
        Some(Err(error)) => Received::Lost(error.to_string()),
        None => Received::Lost("end of stream".to_owned()),
    }
}
