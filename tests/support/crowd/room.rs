//! Clients of opaque sessions: each message is echoed; a client that comes back says what it
//! has.

use std::time::Duration;

use tokio::time::sleep;

use super::{Failure, Hidden, LADDER, Recorder, notes::Notes};
use crate::support::{ALICE, Received, Ws, checker::What};

/// One visitor of a room of its own.
pub struct Room {
    url: String,
    notes: Notes,
    socket: Option<Ws>,
    /// The last message in the log, and whose log.
    position: Option<(u64, String)>,
    sent: u64,
    pub hidden: Hidden,
}

impl Room {
    pub fn new(url: &str, session: &str, recorder: &Recorder) -> Self {
        Self {
            url: format!("{url}/rooms/{session}"),
            notes: Notes::new(recorder, session),
            socket: None,
            position: None,
            sent: 0,
            hidden: Hidden::default(),
        }
    }

    /// A message of its own number is sent and comes back.
    pub async fn turn(&mut self) -> Result<(), Failure> {
        let mut why = String::new();
        self.notes.attempt = 0;
        self.notes.turn += 1;
        for pause in LADDER {
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(fault) => why = fault,
            }
            self.notes.attempt += 1;
            sleep(pause).await;
        }
        Err(Failure::Other(format!("gave up: {why}")))
    }

    #[allow(dead_code, reason = "for the simulation")]
    /// Forgets the socket.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    async fn attempt(&mut self) -> Result<(), String> {
        self.connect().await?;
        let Some(socket) = &mut self.socket else { unreachable!("it was just connected") };
        self.sent += 1;
        let number = self.sent;
        let mut next = match socket.send(format!("message {number}").into()).await {
            Ok(()) => socket.data().await,
            Err(error) => Received::Lost(error),
        };
        loop {
            let Received::Text(text) = next else {
                self.socket = None;
                self.hidden.resent += 1;
                return Err(format!("{next:?}"));
            };
            let got = text.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap();
            self.notes.write(What::Message { number: got });
            if let Some((seq, _)) = &mut self.position {
                *seq += 1;
            }
            if got == number {
                return Ok(());
            }
            next = socket.data().await;
        }
    }

    async fn connect(&mut self) -> Result<(), String> {
        if self.socket.is_some() {
            return Ok(());
        }
        let url = match &self.position {
            Some((seq, epoch)) => format!("{}?last_seq={seq}&last_epoch={epoch}", self.url),
            None => self.url.clone(),
        };
        let session = self.notes.session.clone();
        let headers = [ALICE, ("session-id", session.as_str())];
        match Ws::connect(&url, &headers).await {
            Ok(socket) => {
                let epoch = socket.header("ringspan-epoch").to_owned();
                let gap = socket.header("ringspan-resume").starts_with("gap");
                self.notes.attached(Some(&epoch), gap);
                let seq = socket.header("ringspan-seq").parse().unwrap_or(0);
                self.hidden.reconnects += usize::from(self.position.is_some());
                self.position = Some((seq, epoch));
                self.socket = Some(socket);
                Ok(())
            }
            Err(refused) => {
                let wait = refused.retry_after();
                self.hidden.told_to_wait += usize::from(wait.is_some());
                sleep(Duration::from_secs(wait.unwrap_or(0))).await;
                Err(format!("upgrade refused: {} {}", refused.status, refused.body))
            }
        }
    }
}
