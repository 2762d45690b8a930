//! A ring to test with, on any backend.

use std::{sync::Arc, time::Duration};

use ringspan::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        self, Claim, Claimed, Cursor, Death, LeaseEnd, NewMember, SessionRow, Store, StoreOptions,
        Sweep, memory::Memory, schema,
    },
};

use crate::postgres_server::Server;

/// A lease that does not end during a test.
pub const LONG: Duration = Duration::from_hours(1);

/// A lease that is over when it is granted: time passes without waiting for it.
pub const OVER: Duration = Duration::ZERO;

pub const ALICE: Principal = Principal([0xa1; 16]);
pub const BOB: Principal = Principal([0xb0; 16]);

/// A migrated store, and a second handle on the same data as another process would hold.
pub struct Ring {
    pub store: Arc<dyn Store>,
    pub other: Arc<dyn Store>,
    /// How to reach it; None in memory.
    pub options: Option<StoreOptions>,
    _dir: Option<tempfile::TempDir>,
}

pub fn options(url: String) -> StoreOptions {
    StoreOptions { url, direct_url: None, max_connections: 4, timeout: Duration::from_secs(20) }
}

impl Ring {
    pub fn memory() -> Self {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        Self { other: Arc::clone(&store), store, options: None, _dir: None }
    }

    pub async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("below/ring.db").display());
        Self { _dir: Some(dir), ..Self::migrated(&options(url)).await }
    }

    pub async fn postgres() -> Self {
        Self::migrated(&options(Server::shared().database().await)).await
    }

    async fn migrated(options: &StoreOptions) -> Self {
        schema::migrate(options, |_| {}).await.unwrap();
        Self {
            store: store::open(options).await.unwrap(),
            other: store::open(options).await.unwrap(),
            options: Some(options.clone()),
            _dir: None,
        }
    }

    /// An active member with a long lease.
    pub async fn node(&self, name: &str) -> Incarnation {
        let me = self.store.register(&member(name), LONG).await.unwrap();
        self.store.activate(me).await.unwrap();
        me
    }

    /// Wins a new session or one whose epoch is known.
    pub async fn win(&self, me: Incarnation, key: &str, seen: Option<Epoch>) -> Epoch {
        match self.store.claim(&claim(me, key, seen)).await.unwrap() {
            Claimed::Won { epoch, .. } => epoch,
            other => panic!("the claim was not won but {other:?}"),
        }
    }

    pub async fn row(&self, key: &str) -> SessionRow {
        self.other.session(id(key)).await.unwrap().unwrap()
    }

    /// The lease of a living member.
    pub async fn lease(&self, node: Incarnation) -> LeaseEnd {
        let members = self.other.ring().await.unwrap().members;
        members.iter().find(|member| member.incarnation == node).unwrap().lease
    }

    /// Declares a member dead for the lease that it has; whether that was done.
    pub async fn lapse(&self, node: Incarnation) -> bool {
        let death = Death::Lapsed(self.lease(node).await);
        self.other.mark_dead(node, death).await.unwrap()
    }

    /// One step of each sweep but that of the turns; how many rows went or were closed.
    pub async fn sweep(&self, age: Duration, limit: u32) -> u64 {
        sweep(&*self.other, age, limit).await.unwrap()
    }

    pub async fn kill(&self, node: Incarnation) {
        assert!(self.store.mark_dead(node, Death::Proven).await.unwrap());
    }
}

/// One step of each sweep but that of the turns.
pub async fn sweep(store: &dyn Store, age: Duration, limit: u32) -> store::Result<u64> {
    let mut rows = 0;
    for what in Sweep::ALL.into_iter().filter(|what| *what != Sweep::Turns) {
        rows += store.sweep(what, age, limit, Cursor::START).await?.rows;
    }
    Ok(rows)
}

pub fn member(name: &str) -> NewMember {
    NewMember {
        node_id: name.into(),
        peer_addr: format!("{name}.ring:50051"),
        build: "0.1.0".into(),
        zone: Some("a".into()),
        weight: 100,
        capacity: 1000,
        process: format!("boot/1/{name}"),
        supersede: false,
    }
}

/// The session that this key names for Alice.
pub fn id(key: &str) -> SessionId {
    SessionId::derive(&ALICE, "/rooms/{room}", key)
}

pub fn claim(me: Incarnation, key: &str, seen: Option<Epoch>) -> Claim {
    Claim {
        id: id(key),
        principal: ALICE,
        route: "/rooms/{room}".into(),
        key_label: key.into(),
        me,
        seen,
        limit: None,
    }
}
