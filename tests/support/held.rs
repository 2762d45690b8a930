//! A Responses upstream that says of each create what its input asks for, and no more.
//!
//! | Input | Says |
//! |---|---|
//! | `silent …` | nothing, the first time that it gets it; an answer the next time |
//! | `created …` | `response.created`, and then nothing |
//! | `slow …` | `response.created`; the rest once it is released |
//! | anything else | an answer |

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// The upstream; it ends with its connections when it is dropped.
pub struct Held {
    /// `ws://host:port/v1/responses`
    pub url: String,
    got: Arc<Mutex<Vec<String>>>,
    released: watch::Sender<bool>,
    task: AbortHandle,
}

impl Held {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v1/responses", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<String>>> = Arc::default();
        let (released, release) = watch::channel(false);
        let all = Arc::clone(&got);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&all), release.clone()));
            }
        })
        .abort_handle();
        Self { url, got, released, task }
    }

    /// How often a create of this input came.
    pub fn times(&self, input: &str) -> usize {
        self.got.lock().iter().filter(|got| *got == input).count()
    }

    /// Lets what is slow go on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// None when the connection is over.
async fn serve(
    stream: TcpStream,
    got: Arc<Mutex<Vec<String>>>,
    mut release: watch::Receiver<bool>,
) -> Option<()> {
    let mut socket = accept_async(stream).await.ok()?;
    loop {
        let Message::Text(text) = socket.next().await?.ok()? else { continue };
        let create: Value = serde_json::from_str(&text).ok()?;
        let Some(input) = create["input"].as_str() else { continue };
        let (id, before) = {
            let mut got = got.lock();
            let before = got.iter().filter(|known| *known == input).count();
            got.push(input.to_owned());
            (format!("resp_{}", got.len()), before)
        };
        let kind = input.split(' ').next().unwrap_or_default();
        if kind == "silent" && before == 0 {
            continue;
        }
        let mut said = 0..;
        let mut say = |kind: &str, status: &str| {
            let response =
                json!({ "id": id, "object": "response", "status": status, "output": [] });
            let event =
                json!({ "type": kind, "response": response, "sequence_number": said.next() });
            Message::text(event.to_string())
        };
        let (created, last) =
            (say("response.created", "in_progress"), say("response.completed", "completed"));
        socket.send(created).await.ok()?;
        if kind == "created" {
            continue;
        }
        if kind == "slow" {
            release.wait_for(|released| *released).await.ok()?;
        }
        socket.send(last).await.ok()?;
    }
}
