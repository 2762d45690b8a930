//! What this node knows of the store's absence, shared by those who find out (the lease's
//! thread), those who ask (the task of certificates, the views) and those who are asked (the
//! peer listener).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    lease::LeaseHandle,
    outage::{Bounds, Testimony},
    reaper::Reaper,
};
use crate::{ids::Incarnation, store::RingView};

/// One node's account of the store. Clones are the same account. No call waits.
#[derive(Clone, Debug)]
pub struct Witness {
    bounds: Bounds,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    reaper: Reaper,
    /// When the last renewal that succeeded was sent, or the registration.
    renewed: Instant,
    /// Heartbeats have failed since.
    failing: bool,
    /// This node has stopped renewing, so the age of the last renewal says nothing of the store.
    resigned: bool,
    /// What keeps this node from a certificate, in words; empty while it holds one.
    obstacle: String,
}

impl Witness {
    /// The account of the member `me`, whose registration was sent at `registered` and was
    /// the store's first word. A store that goes away before the first heartbeat is an outage
    /// like any other.
    #[must_use]
    pub fn new(me: Incarnation, bounds: Bounds, registered: Instant) -> Self {
        let state = State {
            reaper: Reaper::new(me, bounds),
            renewed: registered,
            failing: false,
            resigned: false,
            obstacle: String::new(),
        };
        Self { bounds, state: Arc::new(Mutex::new(state)) }
    }

    /// The times of an outage.
    #[must_use]
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A heartbeat sent at `sent` was answered. If others had failed before it: how long the
    /// store was away.
    pub fn renewed(&self, sent: Instant) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let before = std::mem::replace(&mut state.renewed, sent);
        let failing = std::mem::take(&mut state.failing);
        state.obstacle.clear();
        state.reaper.heartbeat(now);
        failing.then(|| now.saturating_duration_since(before))
    }

    /// No heartbeat follows, by this node's own will. From now on it does not count as cut off.
    pub fn resign(&self) {
        self.state.lock().resigned = true;
    }

    /// A heartbeat failed. True for the first in a row.
    pub fn missed(&self) -> bool {
        let mut state = self.state.lock();
        state.reaper.missed();
        !std::mem::replace(&mut state.failing, true)
    }

    /// The view could not be read, although the heartbeat was answered.
    pub fn blind(&self) {
        self.state.lock().reaper.missed();
    }

    /// [`Reaper::verdict`] of a view that was asked for at `asked` and is here now.
    #[must_use]
    pub fn verdict(&self, view: &RingView, asked: Instant) -> Vec<Incarnation> {
        let mut state = self.state.lock();
        let verdict = state.reaper.verdict(view, asked, Instant::now());
        if state.reaper.saw_step() {
            tracing::warn!("the database's clock was set; nobody is declared dead for a lease");
        }
        verdict
    }

    /// [`Reaper::settled`].
    pub fn settled(&self, member: Incarnation, dead: bool) {
        self.state.lock().reaper.settled(member, dead);
    }

    /// [`Reaper::withdraw`].
    pub fn withdraw(&self, member: Incarnation) {
        self.state.lock().reaper.withdraw(member);
    }

    /// [`Reaper::acquaint`], now.
    pub fn acquaint(&self, member: Incarnation) {
        self.state.lock().reaper.acquaint(member, Instant::now());
    }

    /// Whether `member` has said that this node is in its view.
    #[must_use]
    pub fn knows_us(&self, member: Incarnation) -> bool {
        self.state.lock().reaper.knows_us(member)
    }

    /// How long ago the last renewal was sent, if that is so long that this node counts as
    /// cut off from the store.
    #[must_use]
    pub fn cut_off(&self, now: Instant) -> Option<Duration> {
        let state = self.state.lock();
        self.silence(&state, now).filter(|_| !state.resigned)
    }

    fn silence(&self, state: &State, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(state.renewed);
        (age >= self.bounds.cut_off()).then_some(age)
    }

    /// How long the store has not answered, from the first failed heartbeat on; None while
    /// it does.
    #[must_use]
    pub fn unreachable(&self, now: Instant) -> Option<Duration> {
        let state = self.state.lock();
        let age = now.saturating_duration_since(state.renewed);
        (state.failing || age >= self.bounds.cut_off()).then_some(age)
    }

    /// Answers `asker`, which wants a promise if `outage` is set. `known` says whether it is
    /// a living member of this node's view.
    #[must_use]
    pub fn testify(&self, asker: Incarnation, known: bool, outage: bool) -> Testimony {
        let now = Instant::now();
        // A node that has the store's word lets the asker lapse: then others may take over
        // what it owns.
        let mut state = self.state.lock();
        let silent = self.silence(&state, now).is_some();
        let promised = outage && silent && state.reaper.promise(asker, now);
        Testimony { knows_you: known, promised }
    }

    /// All other living members have promised, to questions sent at `asked`: the lease is
    /// outlived for a while. True if it was not certified before.
    pub fn certify(&self, lease: &LeaseHandle, asked: Instant) -> bool {
        let mut state = self.state.lock();
        state.obstacle.clear();
        lease.certified(self.bounds.certified_until(state.renewed, asked))
    }

    /// A round of questions came to nothing. True if the reason is another than before.
    pub fn refused(&self, obstacle: &str) -> bool {
        let mut state = self.state.lock();
        if state.obstacle == obstacle {
            return false;
        }
        obstacle.clone_into(&mut state.obstacle);
        true
    }

    /// What keeps this node from a certificate, if that was asked for.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        Some(self.state.lock().obstacle.clone()).filter(|text| !text.is_empty())
    }
}
