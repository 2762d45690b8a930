//! A WebSocket upstream that does as it is told, in ways that the sample upstream does not.
//!
//! | Text | Does |
//! |---|---|
//! | `close CODE REASON` | closes |
//! | `drop` | ends the connection without a close |
//! | `ping WORD` | pings; the pong's payload comes back as `pong WORD` |
//! | anything else | echoed |

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{Message, protocol::CloseFrame},
};

/// A listener that ends, with its connections, when it is dropped.
pub struct Upstream {
    /// `ws://host:port`
    pub url: String,
    task: AbortHandle,
}

impl Upstream {
    /// Does as it is told.
    pub async fn scripted() -> Self {
        Self::start(async |stream| {
            serve(stream).await;
        })
        .await
    }

    /// Accepts connections and never answers.
    pub async fn hanging() -> Self {
        Self::start(async |stream| {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await
    }

    /// Accepts upgrades and says nothing on them.
    pub async fn silent() -> Self {
        Self::start(async |stream| {
            let Ok(mut socket) = accept_async(stream).await else { return };
            while let Some(Ok(_)) = socket.next().await {}
        })
        .await
    }

    /// Refuses every upgrade as a server that has failed.
    pub async fn failing() -> Self {
        Self::start(|stream| refuse(stream, "500 Failed")).await
    }

    /// Does as it is told by its first client, and knows nobody from then on.
    pub async fn revoking() -> Self {
        let revoked = AtomicBool::new(false);
        Self::start(move |stream| {
            let revoked = revoked.swap(true, Relaxed);
            async move {
                if revoked {
                    refuse(stream, "401 Unauthorized").await;
                } else {
                    serve(stream).await;
                }
            }
        })
        .await
    }

    /// Says its name to each connection, and then does as it is told.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |stream| async move {
            let Ok(mut socket) = accept_async(stream).await else { return };
            if socket.send(Message::text(name)).await.is_ok() {
                obey(socket).await;
            }
        })
        .await
    }

    /// Does as it is told, at a given address.
    pub async fn scripted_at(addr: &str) -> Self {
        Self::start_at(addr, async |stream| {
            serve(stream).await;
        })
        .await
    }

    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0", serve).await
    }

    async fn start_at<F>(addr: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(addr).await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        })
        .abort_handle();
        Self { url, task }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn refuse(mut stream: TcpStream, status: &str) {
    let refusal = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    drop(stream.read(&mut [0; 4096]).await);
    drop(stream.write_all(refusal.as_bytes()).await);
}

/// None when the connection is over.
async fn serve(stream: TcpStream) -> Option<()> {
    obey(accept_async(stream).await.ok()?).await
}

async fn obey(mut socket: WebSocketStream<TcpStream>) -> Option<()> {
    loop {
        let answer = match socket.next().await?.ok()? {
            Message::Pong(payload) => {
                Message::text(format!("pong {}", String::from_utf8_lossy(&payload)))
            }
            Message::Text(text) => {
                let mut words = text.splitn(3, ' ');
                match (words.next(), words.next()) {
                    (Some("drop"), None) => return None,
                    (Some("ping"), Some(word)) => Message::Ping(word.to_owned().into()),
                    (Some("close"), Some(code)) => {
                        let code: u16 = code.parse().ok()?;
                        let reason = words.next().unwrap_or_default().to_owned();
                        Message::Close(Some(CloseFrame {
                            code: code.into(),
                            reason: reason.into(),
                        }))
                    }
                    _ => Message::Text(text),
                }
            }
            Message::Binary(payload) => Message::Binary(payload),
            Message::Ping(_) | Message::Close(_) | Message::Frame(_) => continue,
        };
        socket.send(answer).await.ok()?;
    }
}
