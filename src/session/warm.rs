//! Conversations that other nodes' sessions left here, should this node become their owner.
//!
//! A part of a conversation is a fact: it is never wrong, at most not the newest. So nothing
//! here is fenced; what is missing shows as a response id that nobody knows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::history::{History, Past};
use crate::{
    config::{Limits, Route},
    ids::{Incarnation, Principal, SessionId},
    upstream::Upgrade,
    wire::Batch,
};

/// Conversations kept, and bytes of them: a quarter of a gigabyte on a node that is heir to
/// many.
const MAX_SESSIONS: usize = 50_000;
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// How long a conversation outlives its session's detach time, at least: the lease of its
/// owner has to end first.
const GRACE: Duration = Duration::from_mins(2);

/// What an heir needs to open a session before its client asks.
#[derive(Clone)]
pub struct Warm {
    pub principal: Principal,
    pub route: Arc<Route>,
    pub key_label: String,
    pub upgrade: Upgrade,
    pub past: Vec<Past>,
    /// Name of the endpoint that failed the session last; one that is not configured here means
    /// nothing.
    pub shunned: Option<String>,
    /// Only with a transfer: turns that the owner had to sever.
    pub cut: Vec<Cut>,
}

/// A turn of which nobody knows whether it finished, with what its clients were told: its
/// events, and last that its outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub response_id: String,
    pub events: Batch,
}

/// A conversation on its way to an heir.
#[derive(Clone)]
pub struct Prepared {
    pub session: SessionId,
    /// Who leaves it and may have it let go of; nobody with a transfer, since what was said of the
    /// copy before may come late.
    pub from: Option<Incarnation>,
    /// The heir has what came before; otherwise this is all of it.
    pub append: bool,
    pub warm: Warm,
}

/// The conversations kept here.
#[derive(Default)]
pub(super) struct WarmStore(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    sessions: HashMap<SessionId, Entry>,
    bytes: usize,
    /// When all were looked at last.
    expired: Option<Instant>,
}

struct Entry {
    from: Option<Incarnation>,
    warm: Warm,
    history: History,
    at: Instant,
    /// Since when nobody is known to be there who would have it let go of.
    orphaned: Option<Instant>,
    /// What it takes, as counted when it came.
    bytes: usize,
}

impl Entry {
    fn new(from: Option<Incarnation>, warm: Warm, history: History, at: Instant) -> Self {
        let bytes = size_of::<Self>() + history.bytes() + weight(&warm);
        Self { from, warm, history, at, orphaned: None, bytes }
    }
}

/// Bytes beside the history; a client chose most of them. The route is shared.
fn weight(warm: &Warm) -> usize {
    /// What a header takes beside its bytes.
    const HEADER: usize = 64;

    let Upgrade { path_and_query, headers, subprotocols } = &warm.upgrade;
    let headers: usize = headers.iter().map(|(k, v)| HEADER + k.as_str().len() + v.len()).sum();
    let subprotocols: usize = subprotocols.iter().map(|name| size_of_val(name) + name.len()).sum();
    let cut: usize = warm.cut.iter().map(|cut| cut.response_id.len() + cut.events.weight()).sum();
    let shunned = warm.shunned.as_ref().map_or(0, String::len);
    warm.key_label.len() + path_and_query.len() + headers + subprotocols + shunned + cut
}

impl WarmStore {
    /// Keeps a conversation. False if it is only a part and what came before is not here, or
    /// if there is no room.
    pub(super) fn keep(&self, prepared: Prepared, limits: &Limits) -> bool {
        let Prepared { session, from, append, mut warm } = prepared;
        let now = Instant::now();
        let past = std::mem::take(&mut warm.past);
        let mut kept = self.0.lock();
        let old = kept.remove(session);
        let had = old.map(|old| old.history);
        let Some(history) = History::kept(had, append, past, limits.history_bytes) else {
            return false;
        };
        kept.expire(now);
        let entry = Entry::new(from, warm, history, now);
        let room = kept.bytes + entry.bytes <= MAX_BYTES && kept.sessions.len() < MAX_SESSIONS;
        if room {
            kept.bytes += entry.bytes;
            kept.sessions.insert(session, entry);
        }
        room
    }

    /// Lets go of those of these sessions that `from` has left here. What another node left
    /// since then is of a later owner.
    pub(super) fn let_go(&self, from: Incarnation, sessions: &[SessionId]) {
        let mut kept = self.0.lock();
        for &session in sessions {
            if kept.sessions.get(&session).is_some_and(|entry| entry.from == Some(from)) {
                kept.remove(session);
            }
        }
    }

    /// Lets go of those whose leavers have been gone for as long as a takeover may need them: if
    /// their sessions have ended since, or moved elsewhere, nobody can say so here any more.
    pub(super) fn let_go_of_orphans(&self, is_there: impl Fn(Incarnation) -> bool) {
        let now = Instant::now();
        self.0.lock().retain(|entry| {
            if entry.from.is_some_and(&is_there) {
                return true;
            }
            let orphaned = *entry.orphaned.get_or_insert(now);
            now < orphaned + entry.warm.route.detach_ttl + GRACE
        });
    }

    /// Conversations kept.
    pub(super) fn len(&self) -> usize {
        self.0.lock().sessions.len()
    }

    /// The conversation of a session that this node owns from now on.
    pub(super) fn take(&self, session: SessionId) -> Option<Warm> {
        let Entry { mut warm, history, .. } = self.0.lock().remove(session)?;
        warm.past = history.all().to_vec();
        Some(warm)
    }

    /// The conversation of a session that this node passes on, without taking it.
    pub(super) fn copy(&self, session: SessionId) -> Option<Warm> {
        let kept = self.0.lock();
        let Entry { warm, history, .. } = kept.sessions.get(&session)?;
        Some(Warm { past: history.all().to_vec(), ..warm.clone() })
    }

    /// Whether something of the session is here.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.0.lock().sessions.contains_key(&session)
    }

    /// Whether what is here of the session is young enough to be asked for.
    pub(super) fn has_fresh(&self, session: SessionId) -> bool {
        let now = Instant::now();
        self.0.lock().sessions.get(&session).is_some_and(|entry| entry.is_fresh(now))
    }

    /// What is needed to open the session, without taking it.
    pub(super) fn peek(&self, session: SessionId) -> Option<Warm> {
        self.0.lock().sessions.get(&session).map(|entry| entry.warm.clone())
    }
}

impl Entry {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.at + self.warm.route.detach_ttl + GRACE
    }
}

impl Kept {
    fn remove(&mut self, session: SessionId) -> Option<Entry> {
        let entry = self.sessions.remove(&session)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Lets go of what is too old to be asked for, when there is much. Not at every call: all
    /// of it is looked at, and others wait.
    fn expire(&mut self, now: Instant) {
        const PAUSE: Duration = Duration::from_secs(1);

        let much = self.sessions.len() >= MAX_SESSIONS / 2 || self.bytes >= MAX_BYTES / 2;
        if !much || self.expired.is_some_and(|last| now < last + PAUSE) {
            return;
        }
        self.expired = Some(now);
        self.retain(|entry| entry.is_fresh(now));
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Entry) -> bool) {
        self.sessions.retain(|_, entry| keep(entry));
        self.bytes = self.sessions.values().map(|entry| entry.bytes).sum();
    }
}
