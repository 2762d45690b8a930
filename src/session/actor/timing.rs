//! What a session does when time has passed, and what it tells operators.

use std::{future::Future, sync::atomic::Ordering::Relaxed, task::Context as Cx, time::Duration};

use tokio::time::Instant;

use super::{Actor, Exit, OPAQUE, Upstream};
use crate::session::turns::{TurnNo, Turns};

impl Actor {
    /// The detach time of a session without clients begins when its last turn ends.
    pub(in crate::session) fn turn_ended(&mut self) {
        let now = Instant::now();
        self.alone_since = self.alone_since.map(|_| now);
        self.retime = true;
        self.trim(now);
    }

    /// The upstream was sent a turn or spoke of it; `done`: it has ended.
    pub(in crate::session) fn heard_of(&mut self, turn: TurnNo, done: bool) {
        let known = self.heard.iter().position(|(no, _)| *no == turn);
        match known {
            Some(at) if done => drop(self.heard.swap_remove(at)),
            Some(at) => self.heard[at].1 = self.polled_at,
            None if done => {}
            None => self.heard.push((turn, self.polled_at)),
        }
    }

    /// When a turn that was heard of `at` that time is over. While nobody could listen, the
    /// upstream could not be heard.
    fn silent_at(&self, at: Instant) -> Instant {
        at.max(self.listening_since) + self.ctx.limits.turn_idle_timeout
    }

    pub(super) fn poll_timer(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        if std::mem::take(&mut self.retime) {
            self.timer_at = self.next_deadline();
            self.timer.as_mut().reset(self.timer_at);
        } else if self.polled_at < self.timer_at {
            // Asked since it was set, it wakes this task: nothing to ask before its time.
            return None;
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return None;
        }
        *progress = true;
        self.retime = true;
        let now = Instant::now();
        self.timer_rang = now;
        self.poll_leaving(now);
        self.trim(now);
        let running = self.turns.as_ref().map_or(0, Turns::running);
        let heard = self.heard.iter().filter(|(_, at)| now >= self.silent_at(*at));
        let silent: Vec<_> = heard.map(|(turn, _)| *turn).collect();
        if let Some(turns) = &mut self.turns
            && !silent.is_empty()
        {
            let actions = turns.on_silence(&silent);
            if !actions.is_empty() {
                self.upstream_silent();
            }
            self.perform(actions);
        }
        let idle = running == 0 && self.is_idle();
        if idle && self.alone_since.is_some_and(|since| now >= since + self.route.detach_ttl) {
            return Some(Exit::Abandoned);
        }
        self.rotate(now, idle);
        None
    }

    /// Keeps the logs within their bounds of bytes and time.
    fn trim(&mut self, now: Instant) {
        let limits = &self.ctx.limits;
        let clients = &self.clients;
        self.streams.trim(limits.replay_bytes, limits.replay_ttl, now, |no| {
            clients.iter().any(|client| client.reads(no))
        });
        if let Some(stream) = self.streams.get_mut(OPAQUE) {
            stream.log.trim(limits.replay_bytes, limits.replay_ttl, now);
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        /// A timer has to stand somewhere.
        const IDLE: Duration = Duration::from_hours(1);
        let now = Instant::now();
        let limits = &self.ctx.limits;
        let mut deadline = now + IDLE;
        if let Some(at) = self.leaves_at {
            deadline = deadline.min(at);
        }
        if let Some(since) = self.alone_since {
            deadline = deadline.min(since + self.route.detach_ttl);
        }
        if let Upstream::Connected(connection, _) = &self.upstream
            && self.turns.as_ref().is_some_and(|turns| !turns.is_spent())
        {
            deadline = deadline.min(connection.since + self.route.upstream.max_connection_age);
        }
        if let Some(oldest) = self.heard.iter().map(|(_, at)| *at).min() {
            deadline = deadline.min(self.silent_at(oldest));
        }
        let expires = self.streams.expires(limits.replay_ttl);
        let expires = match self.streams.get(OPAQUE) {
            Some(stream) => stream.log.expires(limits.replay_ttl),
            None => expires,
        };
        if let Some(expires) = expires {
            deadline = deadline.min(expires);
        }
        // A deadline that has passed and moved nothing must not spin, and a log under steady flow
        // is trimmed in strides. From the last time on, or what happens all the time would put it
        // off for ever.
        deadline.max(self.timer_rang + (limits.replay_ttl / 8).min(Duration::from_millis(100)))
    }

    /// Brings the figures for operators up to date.
    pub(super) fn publish(&mut self) {
        let bytes = self.streams.bytes();
        self.replay_share.set(bytes);
        self.stats.replay_bytes.store(bytes as u64, Relaxed);
        if let Some(stream) = self.streams.get(OPAQUE) {
            self.stats.head_seq.store(stream.log.head(), Relaxed);
            self.stats.floor_seq.store(stream.log.floor(), Relaxed);
        }
        if let Some(turns) = &self.turns {
            self.stats.turns_running.store(turns.running() as u64, Relaxed);
            self.stats.turns_queued.store(turns.queued() as u64, Relaxed);
            self.stats.turns_done.store(turns.done(), Relaxed);
            if turns.running() + turns.queued() > 0 {
                self.stats.touch();
            }
            self.stats.history_bytes.store(turns.history().bytes() as u64, Relaxed);
        }
        let lag = self.clients.iter().map(|client| client.lag(&self.streams)).max();
        self.stats.lag.store(lag.unwrap_or(0), Relaxed);
    }
}
