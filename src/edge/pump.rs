//! Moves between one client socket and one link, and says what happened.
//!
//! Frames that are ready are gathered before they are written: a write happens when there
//! is nothing else to do, or when enough is gathered.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CLOSE_POLICY, CLOSE_RESTART, Drain, RESTART,
    auth::{GRACE, Identity},
    pace::Pace,
    upgrade::Seat,
};
use crate::{
    bell::Bell,
    config::Limits,
    link::{Frame, Link},
    net::TcpStream,
    telemetry::metrics::FrameCounters,
    wire::{Batch, CloseFrame, Incoming, Socket, SocketError},
};

/// Bytes towards the client above which its session is not read.
const WINDOW: usize = 64 * 1024;

/// How long a client may take to answer a close that it was sent, and to be sent it at a cut.
const CLOSING: Duration = Duration::from_secs(1);

/// Idle sockets are closed spread over this time, so that not all come back at once.
const SPREAD: Duration = Duration::from_secs(2);

/// Why a client is closed that begins a large message and does not end it.
const TOO_SLOW: &str = "the message came too slowly";

/// What a pump has met.
#[derive(Debug)]
pub(super) enum Event {
    FromClient(Incoming),
    /// The client sent what is no WebSocket.
    ClientBroke {
        close: u16,
        what: &'static str,
    },
    /// The client is gone, with or without a word, or does not read.
    ClientGone,
    FromSession(Frame),
    /// The link ended without a last frame: the owner, or the way to it, is gone.
    SessionGone,
    /// The client's credential is good no more. Said once; a cut follows after a while.
    Unauthorized,
    /// Close at the next boundary.
    Closing,
    /// Close now.
    Cut,
}

/// A cancellation or the like that is waited for beside everything else. A token asked at each
/// poll would take locks that all sockets of the node share.
struct Awaited {
    event: Pin<Box<dyn Future<Output = ()> + Send>>,
    bell: Bell,
}

impl Awaited {
    fn new(event: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { event, bell: Bell::default() }
    }

    fn cancellation(token: &CancellationToken) -> Self {
        Self::new(Box::pin(token.clone().cancelled_owned()))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.bell.poll(cx, |cx| self.event.as_mut().poll(cx))
    }
}

/// One client socket.
pub(super) struct Pump {
    socket: Socket<TcpStream>,
    _seat: Seat,
    write_timeout: Duration,
    pace: Pace,
    /// Armed while the client does not take what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Option<Awaited>,
    cut: CancellationToken,
    /// Resolves when the client's credential is good no more.
    ended: Option<Awaited>,
    /// Armed then: how long a running turn may still take.
    grace: Option<Pin<Box<Sleep>>>,
    /// Waited for once the drain has begun.
    hard: Option<Awaited>,
    /// When an idle socket is closed during a drain.
    close_at: Option<Pin<Box<Sleep>>>,
    up: FrameCounters,
    down: FrameCounters,
}

impl Pump {
    pub(super) fn new(
        socket: Socket<TcpStream>,
        seat: Seat,
        identity: &Identity,
        limits: &Limits,
        drain: &Drain,
        up: FrameCounters,
        down: FrameCounters,
    ) -> Box<Self> {
        // Boxed, or the task of a socket has room for it in each of its states.
        Box::new(Self {
            socket,
            _seat: seat,
            write_timeout: limits.write_timeout,
            pace: Pace::new(limits.upgrade_timeout),
            stalled: None,
            closing: Some(Awaited::cancellation(&drain.closing)),
            cut: drain.cut.clone(),
            ended: identity.ended().map(Awaited::new),
            grace: None,
            hard: None,
            close_at: None,
            up,
            down,
        })
    }

    /// Waits for the next thing to happen. Without a link the client is read all the same,
    /// so that its leaving is noticed. Cancel-safe.
    pub(super) async fn next(&mut self, link: &mut Option<Link>) -> Event {
        poll_fn(|cx| self.poll_next(link, cx)).await
    }

    fn poll_next(&mut self, link: &mut Option<Link>, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.poll_standing(cx).or_else(|| self.poll_drain(cx)) {
                return Poll::Ready(event);
            }
            let room = self.socket.pending() < WINDOW;
            if room && let Some(link) = link {
                match link.rx.poll_recv(cx) {
                    Poll::Ready(Some(frame)) => return Poll::Ready(Event::FromSession(frame)),
                    Poll::Ready(None) => return Poll::Ready(Event::SessionGone),
                    Poll::Pending => {}
                }
            }
            let open = link.as_mut().is_none_or(|link| link.tx.poll_ready(cx).is_ready());
            if room && open {
                if let Poll::Ready(incoming) = self.socket.poll_recv(cx) {
                    return Poll::Ready(self.incoming(incoming));
                }
                if self.pace.poll_breach(self.socket.unfinished(), cx) {
                    return Poll::Ready(Event::ClientBroke { close: CLOSE_POLICY, what: TOO_SLOW });
                }
            } else {
                self.pace.pause();
            }
            if !self.socket.needs_flush() {
                self.stalled = None;
                return Poll::Pending;
            }
            if self.poll_write(cx) == Poll::Ready(false) {
                return Poll::Ready(Event::ClientGone);
            }
            // Writing may have made the room that was missing above.
            if room || self.socket.pending() >= WINDOW {
                return Poll::Pending;
            }
        }
    }

    /// Writes what is queued; whether the client has taken it, or is gone: by its connection, or
    /// because it took nothing for `write_timeout`.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let before = self.socket.pending();
        let written = self.socket.poll_flush(cx);
        if written.is_ready() || self.socket.pending() < before {
            self.stalled = None;
        }
        if let Poll::Ready(written) = written {
            return Poll::Ready(written.is_ok());
        }
        let deadline = Instant::now() + self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        stalled.as_mut().poll(cx).map(|()| false)
    }

    fn poll_standing(&mut self, cx: &mut Context<'_>) -> Option<Event> {
        if self.ended.as_mut().is_some_and(|ended| ended.poll(cx).is_ready()) {
            self.ended = None;
            self.grace = Some(Box::pin(sleep_until(Instant::now() + GRACE)));
            return Some(Event::Unauthorized);
        }
        let over = self.grace.as_mut().is_some_and(|grace| grace.as_mut().poll(cx).is_ready());
        over.then(|| {
            self.grace = None;
            Event::Cut
        })
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Option<Event> {
        if let Some(closing) = &mut self.closing {
            if closing.poll(cx).is_pending() {
                return None;
            }
            self.closing = None;
            let spread = Instant::now() + SPREAD.mul_f64(rand::random());
            self.close_at = Some(Box::pin(sleep_until(spread)));
            self.hard = Some(Awaited::cancellation(&self.cut));
        }
        if self.hard.as_mut().is_some_and(|hard| hard.poll(cx).is_ready()) {
            self.hard = None;
            return Some(Event::Cut);
        }
        if self.close_at.as_mut().is_some_and(|at| at.as_mut().poll(cx).is_ready()) {
            self.close_at = None;
            return Some(Event::Closing);
        }
        None
    }

    fn incoming(&mut self, incoming: Option<Result<Incoming, SocketError>>) -> Event {
        match incoming {
            Some(Ok(incoming)) => {
                if let Incoming::Messages(batch) = &incoming {
                    self.up.record(batch.len(), batch.weight());
                }
                Event::FromClient(incoming)
            }
            Some(Err(SocketError::Protocol { close, what })) => Event::ClientBroke { close, what },
            Some(Err(SocketError::Io(_))) | None => Event::ClientGone,
        }
    }

    /// Queues messages for the client.
    pub(super) fn send(&mut self, batch: &Batch) {
        self.down.record(batch.len(), batch.weight());
        self.socket.queue(batch);
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.socket.queue_ping(payload);
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        self.socket.queue_pong(payload);
    }

    /// Ends the connection as its other side asked.
    pub(super) async fn close_as(self: Box<Self>, frame: Option<CloseFrame>) {
        match frame {
            // 1005: a close without a code.
            None => self.close(1005, "").await,
            Some(frame) => self.close(frame.code, &frame.reason).await,
        }
    }

    /// Ends the connection because this node or its owner restarts.
    pub(super) async fn close_restart(self: Box<Self>) {
        self.close(CLOSE_RESTART, RESTART).await;
    }

    /// Says the last word and hangs up. What was said before is the end of a turn, as likely as
    /// not, so a client that is slow has the time that it always has, until this node's cut.
    pub(super) async fn close(mut self: Box<Self>, code: u16, reason: &str) {
        self.socket.queue_close(code, reason);
        let cut = self.cut.clone();
        let is_there = tokio::select! {
            biased;
            taken = poll_fn(|cx| self.poll_write(cx)) => taken,
            () = cut.cancelled() => true,
        };
        if !is_there {
            return;
        }
        // The echo is not waited for: clients that expect the server to close first would both
        // wait.
        let goodbye = async {
            self.socket.shutdown().await?;
            // What the client still had under way is read, or the kernel would answer it
            // with a reset that destroys the close frame on its way.
            while let Some(Ok(incoming)) = self.socket.recv().await {
                if matches!(incoming, Incoming::Close(_)) {
                    break;
                }
            }
            std::io::Result::Ok(())
        };
        drop(timeout(CLOSING, goodbye).await);
    }
}
