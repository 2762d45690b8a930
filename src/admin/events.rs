//! `/api/v1/events`: a snapshot, then what happens, as server-sent events.
//!
//! `snapshot` carries `{health, ring, sessions, truncated}` and comes first, again every two
//! seconds, and after a `resync`. `node` carries one event. `resync` says that this
//! subscriber was too slow and how many events it missed.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Admin, Failure,
    view::{NodeEvent, NodeView, SessionQuery},
};
use crate::error::Code;

/// Pages and tools that watch one node at a time; each costs a socket and a receiver.
const MAX_SUBSCRIBERS: usize = 32;
/// How often loads, leases and sessions are shown anew.
const REFRESH: Duration = Duration::from_secs(2);
/// Sessions in a snapshot: what a person can look at.
const SHOWN_SESSIONS: usize = 200;

/// What all subscribers share: one snapshot, made at most once per [`REFRESH`] however
/// many are watching.
pub(super) struct Feed {
    places: Arc<Semaphore>,
    snapshot: Mutex<Option<(Instant, Arc<str>)>>,
    shutdown: CancellationToken,
}

impl Feed {
    pub(super) fn new(shutdown: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(MAX_SUBSCRIBERS));
        Self { places, snapshot: Mutex::new(None), shutdown }
    }

    /// The shared snapshot, made anew if it is too old. The lock is held across the store's
    /// answer on purpose: the others wait for that answer too.
    async fn snapshot(&self, view: &dyn NodeView) -> Arc<str> {
        let mut held = self.snapshot.lock().await;
        if let Some((at, text)) = &*held
            && at.elapsed() < REFRESH / 2
        {
            return text.clone();
        }
        // One more than is shown, to know that there are more.
        let query = SessionQuery { limit: Some(SHOWN_SESSIONS + 1), ..SessionQuery::default() };
        let (health, ring, sessions) =
            tokio::join!(view.health(), view.ring(), view.sessions(&query));
        let snapshot = match sessions {
            Ok(mut sessions) => {
                let truncated = sessions.len() > SHOWN_SESSIONS;
                sessions.truncate(SHOWN_SESSIONS);
                json!({ "health": health, "ring": ring, "sessions": sessions,
                        "truncated": truncated })
            }
            Err(error) => json!({ "health": health, "ring": ring, "sessions": null,
                                  "error": error.body() }),
        };
        let text: Arc<str> = snapshot.to_string().into();
        *held = Some((Instant::now(), text.clone()));
        text
    }
}

pub(super) async fn subscribe(State(admin): State<Admin>) -> Result<Response, Failure> {
    let Ok(place) = admin.feed.places.clone().try_acquire_owned() else {
        return Err(Failure::new(Code::QueueFull, "Too many are watching this node's events."));
    };
    // Subscribed before the first snapshot is made, so that nothing falls in between.
    let events = admin.view.events();
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let subscriber = Subscriber { admin, events: Some(events), refresh, _place: place };
    let updates = subscriber.updates();
    Ok(Sse::new(updates).keep_alive(KeepAlive::default()).into_response())
}

/// One open connection.
struct Subscriber {
    admin: Admin,
    /// None once the node sends no more.
    events: Option<broadcast::Receiver<NodeEvent>>,
    refresh: Interval,
    _place: OwnedSemaphorePermit,
}

impl Subscriber {
    /// Everything to be sent; ends at shutdown.
    fn updates(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut this| {
            let event = this.next().await?;
            Some((Ok(event), this))
        })
    }

    /// Cancel-safe but for the snapshot under way, which is simply made again.
    async fn next(&mut self) -> Option<Event> {
        let Self { admin, events, refresh, .. } = self;
        let received = async {
            match events {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = admin.feed.shutdown.cancelled() => None,
            _ = refresh.tick() => {
                let text = admin.feed.snapshot(&*admin.view).await;
                Some(Event::default().event("snapshot").data(&*text))
            }
            received = received => match received {
                Ok(event) => {
                    let text = serde_json::to_string(&event).ok()?;
                    Some(Event::default().event("node").data(text))
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    refresh.reset_immediately();
                    let text = json!({ "missed": missed }).to_string();
                    Some(Event::default().event("resync").data(text))
                }
                Err(broadcast::error::RecvError::Closed) => {
                    *events = None;
                    Some(Event::default().comment("no more events"))
                }
            },
        }
    }
}
