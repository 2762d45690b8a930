//! A WebSocket upstream that does as it is told, in ways that the sample upstream does not.
//!
//! | Text | Does |
//! |---|---|
//! | `close CODE REASON` | closes |
//! | `drop` | ends the connection without a close |
//! | `ping WORD` | pings; the pong's payload comes back as `pong WORD` |
//! | anything else | echoed |

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::{
    accept_async,
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

    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

/// None when the connection is over.
async fn serve(stream: TcpStream) -> Option<()> {
    let mut socket = accept_async(stream).await.ok()?;
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
