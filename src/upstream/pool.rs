//! The endpoints of one upstream, and what is known of their health on this node.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    breaker::{Admission, Breaker, Evidence},
    choice,
};
use crate::{
    config::{BreakerRules, Upstream},
    telemetry::metrics::{BreakerState, Metrics},
};

/// The breakers of an upstream's endpoints.
pub struct Pool {
    upstream: Arc<str>,
    endpoints: Vec<Endpoint>,
    metrics: Metrics,
}

struct Endpoint {
    name: Arc<str>,
    weight: u32,
    breaker: Mutex<Breaker>,
}

/// An endpoint that was dialled, to tell what became of it.
#[derive(Clone)]
pub struct Member {
    pool: Arc<Pool>,
    at: usize,
}

/// A dial that an endpoint's breaker allows. Dropped without a word, it leaves no trace.
pub struct Permit {
    member: Member,
    admission: Admission,
    told: bool,
}

impl Pool {
    #[must_use]
    pub fn new(upstream: &Upstream, rules: BreakerRules, metrics: Metrics) -> Arc<Self> {
        let endpoint = |endpoint: &crate::config::Endpoint| Endpoint {
            name: endpoint.name.as_str().into(),
            weight: endpoint.weight,
            breaker: Mutex::new(Breaker::new(rules)),
        };
        let endpoints: Vec<_> = upstream.endpoints.iter().map(endpoint).collect();
        for endpoint in &endpoints {
            metrics.breaker(&upstream.name, &endpoint.name, BreakerState::Closed);
        }
        Arc::new(Self { upstream: upstream.name.as_str().into(), endpoints, metrics })
    }

    /// The best endpoint for a session that may be dialled and is none of `tried`; `avoid`
    /// only if there is no other.
    ///
    /// # Errors
    /// When one may be dialled again; None if all have been tried.
    pub fn choose(
        self: &Arc<Self>,
        key: &[u8],
        avoid: Option<usize>,
        tried: &[usize],
        now: Instant,
    ) -> Result<Permit, Option<Instant>> {
        let mut order = choice::ranked(key, self.endpoints.iter().map(|e| (&*e.name, e.weight)));
        order.retain(|at| !tried.contains(at));
        if let Some(last) = order.iter().position(|at| Some(*at) == avoid) {
            order[last..].rotate_left(1);
        }
        let mut earliest: Option<Instant> = None;
        for at in order {
            let member = Member { pool: Arc::clone(self), at };
            match member.change(|breaker| breaker.admit(now)) {
                Ok(admission) => return Ok(Permit { member, admission, told: false }),
                Err(until) => {
                    earliest = Some(earliest.map_or(until, |known| known.min(until)));
                }
            }
        }
        Err(earliest)
    }

    /// Whether another endpoint than these could be dialled.
    #[must_use]
    pub fn has_other(&self, than: &[usize], now: Instant) -> bool {
        let others = self.endpoints.iter().enumerate().filter(|(at, _)| !than.contains(at));
        others.into_iter().any(|(_, endpoint)| endpoint.breaker.lock().check(now).is_ok())
    }
}

/// The number that a breaker knows a session by.
#[must_use]
pub fn session_number(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

impl Member {
    /// Its number in the upstream's list.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.pool.endpoints[self.at].name
    }

    /// A turn came to its end here.
    pub fn turn_ended(&self) {
        self.learn(Evidence::TurnEnded);
    }

    /// A turn of a session failed by this endpoint's fault.
    pub fn turn_failed(&self, key: &[u8]) {
        self.learn(Evidence::TurnFailed(session_number(key)));
    }

    /// Whether it is given up for now and another could take its sessions.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        let open = self.pool.endpoints[self.at].breaker.lock().state() == BreakerState::Open;
        open && self.has_other()
    }

    /// Whether another endpoint could be dialled.
    #[must_use]
    pub fn has_other(&self) -> bool {
        self.pool.has_other(&[self.at], Instant::now())
    }

    fn learn(&self, evidence: Evidence) {
        self.change(|breaker| breaker.learn(evidence, Instant::now(), rand::random()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let endpoint = &self.pool.endpoints[self.at];
        let mut breaker = endpoint.breaker.lock();
        let before = breaker.state();
        let result = change(&mut breaker);
        let after = breaker.state();
        if before != after {
            let (upstream, name) = (&*self.pool.upstream, &*endpoint.name);
            // Under the lock, or two changes might be shown in the wrong order.
            self.pool.metrics.breaker(upstream, name, after);
            drop(breaker);
            match after {
                BreakerState::Open => {
                    tracing::warn!(upstream, endpoint = name, "endpoint given up");
                }
                BreakerState::HalfOpen => tracing::debug!(upstream, endpoint = name, "probing"),
                BreakerState::Closed => tracing::info!(upstream, endpoint = name, "endpoint back"),
            }
        }
        result
    }
}

impl Permit {
    /// The endpoint to dial.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Whether it answers is not waited for any more: if this was a probe, another may
    /// begin. What becomes of it can be told all the same.
    pub fn give_back(&mut self) {
        let admission = std::mem::replace(&mut self.admission, Admission::Ordinary);
        self.member.change(|breaker| breaker.give_back(admission, Instant::now()));
    }

    /// It answered, perhaps with a refusal of its own.
    pub fn reached(mut self) -> Member {
        self.told = true;
        self.member.learn(Evidence::Reached(self.admission));
        self.member.clone()
    }

    /// It did not answer, or with a server's failure; then to the session of this number.
    pub fn failed(mut self, session: Option<u64>) {
        self.told = true;
        self.member.learn(Evidence::Unreachable(self.admission, session));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.give_back();
        }
    }
}
