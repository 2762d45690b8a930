//! What a large ring costs one of its nodes. All other members are rows in Postgres: ACTIVE,
//! with a lease that does not end, so placement reckons with them, and nobody at their address.
//! Clients name sessions that placement gives to the real node, so none of the others is asked.

use std::{
    cell::Cell,
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use ringspan::{
    ids::{Incarnation, Principal, SessionId},
    ring::placement::Placement,
    store::Member,
};

use super::{
    measure::{Running, measure},
    parts,
    peers::{Rig, Subject},
    plan::{Run, lasting},
    process::cpu_ns,
    report::{Row, list, median, short},
    ring::{Database, Node, Postgres},
};

/// Members of a ring, the real one too.
const SIZES: [u32; 4] = [1, 3, 30, 300];
/// Joins and leaves of one more member each.
const CHANGES: u32 = 10;
/// Sessions that a load may ask for in a second, and for its start; then it takes the first again.
const KEYS_PER_SECOND: f64 = 3000.0;

/// Only rows have such a node id.
const ROW: &str = "row-";
/// What every change of the ring does besides.
const ANNOUNCE: &str = "UPDATE ring_meta SET version = version + 1; \
     SELECT pg_notify('ringspan_ring', version::text) FROM ring_meta;";

/// A ring of one real node.
struct Crowd<'a> {
    rig: &'a Rig,
    postgres: &'a Postgres,
    database: Database,
    size: u32,
    /// Whose sessions those of the load are.
    principal: Principal,
    /// The next session to be named.
    next: Cell<u64>,
}

/// A node of a [`Crowd`] under load, and what says who owns a session.
struct Owner {
    subject: Subject,
    placement: Placement,
}

impl<'a> Crowd<'a> {
    fn new(rig: &'a Rig, postgres: &'a Postgres, size: u32) -> anyhow::Result<Self> {
        let database = postgres.database()?;
        // Makes the schema, and has one client, whose row says who "nobody" is in this ring.
        let first = subject(rig.nodes.start(&database, 100, None)?);
        let load = lasting("idle --connections 1", 0.0);
        let client = Running::start(rig, &first, &load)?;
        let who = "SELECT encode(principal, 'hex') FROM session LIMIT 1;";
        let who = u128::from_str_radix(&postgres.ask(&database, who)?.answer()?, 16)?;
        drop((client, first));
        let rows = format!("{}{ANNOUNCE}", join(1..size));
        postgres.ask(&database, &rows)?.answer()?;
        let (principal, next) = (Principal(who.to_be_bytes()), Cell::new(0));
        let crowd = Self { rig, postgres, database, size, principal, next };
        crowd.forget()?;
        Ok(crowd)
    }

    /// No real node was ever there.
    fn forget(&self) -> anyhow::Result<()> {
        let real =
            format!("DELETE FROM session; DELETE FROM member WHERE node_id NOT LIKE '{ROW}%';");
        self.postgres.ask(&self.database, &real)?.answer()?;
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Node> {
        self.rig.nodes.start(&self.database, 100, None)
    }

    /// From the start of a process to its word that it is ready, in milliseconds.
    fn ready_ms(&self, times: usize) -> anyhow::Result<f64> {
        let mut samples = Vec::new();
        for _ in 0..times {
            samples.push(self.start()?.started_in.as_secs_f64() * 1e3);
            self.forget()?;
        }
        Ok(median(samples))
    }

    /// Milliseconds of CPU each second, of a node that does nothing and of Postgres.
    fn rest_ms(&self, node: &Node, time: Duration) -> (f64, f64) {
        let cpu = || {
            let ms = |pid| cpu_ns(pid) as f64 / 1e6;
            (ms(node.process.id()), ms(self.postgres.process.id()))
        };
        let before = cpu();
        sleep(time);
        let after = cpu();
        let seconds = time.as_secs_f64();
        ((after.0 - before.0) / seconds, (after.1 - before.1) / seconds)
    }

    /// From the commit of a join or a leave to the moment at which the node acts on it, in
    /// milliseconds: the median and the longest.
    fn changed_ms(&self, node: &Node) -> anyhow::Result<(f64, f64)> {
        let mut samples = Vec::new();
        for n in 0..CHANGES {
            let another = self.size + n / 2;
            let change = if n.is_multiple_of(2) {
                join(another..another + 1)
            } else {
                format!("DELETE FROM member WHERE node_id = '{ROW}{another}';")
            };
            samples.push(self.change_ms(node, &change)?);
        }
        let longest = samples.iter().copied().fold(0.0, f64::max);
        Ok((median(samples), longest))
    }

    fn change_ms(&self, node: &Node, change: &str) -> anyhow::Result<f64> {
        let before = node.ring_version()?;
        // How long a commit takes to reach the disk is no matter of the ring.
        let statements = format!(
            "BEGIN; SET LOCAL synchronous_commit = off; {change} {ANNOUNCE} \
             SELECT extract(epoch FROM clock_timestamp()); COMMIT;"
        );
        let asked = self.postgres.ask(&self.database, &statements)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while node.ring_version()? == before {
            ensure!(Instant::now() < deadline, "the ring does not change");
            sleep(Duration::from_micros(100));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a Postgres of this machine says the moment of its commit by this clock"
        )]
        let seen = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        Ok((seen - asked.answer()?.parse::<f64>()?) * 1e3)
    }

    /// A node for load, whose sessions it will own.
    fn owner(&self) -> anyhow::Result<Owner> {
        let node = self.start()?;
        let rows = (1..self.size).map(|n| format!("{ROW}{n}"));
        let ids = std::iter::once(node.id.clone()).chain(rows);
        let members: Vec<Member> = (0..).zip(ids).map(|(n, id)| member(n, id)).collect();
        Ok(Owner { placement: Placement::build(&members), subject: subject(node) })
    }

    /// A file of keys of sessions on `route` that nobody has named yet, and that are `owner`'s.
    fn keys(&self, owner: &Owner, route: &str, seconds: f64) -> anyhow::Result<PathBuf> {
        let mut text = String::new();
        let mut left = (KEYS_PER_SECOND * (seconds + 1.0)).round();
        while left > 0.0 {
            let key = format!("k-{}", self.next.replace(self.next.get() + 1));
            let id = SessionId::derive(&self.principal, route, &key);
            if owner.placement.owner(id) == Some(Incarnation(0)) {
                text.extend([&*key, "\n"]);
                left -= 1.0;
            }
        }
        let path = self.rig.dir().join("keys");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Statements by which rows join.
fn join(rows: std::ops::Range<u32>) -> String {
    let (first, last) = (rows.start, rows.end.saturating_sub(1));
    // Of the real node's release, as those before them are: heirs are chosen by it. As if they
    // joined after every real one, which then does not ask them again and again whether they
    // know it: nobody would answer.
    format!(
        "INSERT INTO member (incarnation, node_id, peer_addr, build, weight, capacity, process, \
         state, lease_expires_at) SELECT 1000000000 + n, '{ROW}' || n, '127.0.0.1:1', m.build, \
         100, 10000, '', 'ACTIVE', clock_timestamp() + interval '1 day' \
         FROM generate_series({first}, {last}) n, \
         (SELECT build FROM member ORDER BY incarnation DESC LIMIT 1) m;"
    )
}

fn subject(node: Node) -> Subject {
    Subject { name: "ringspan", hops: 1, entry: node.client, processes: vec![node.process] }
}

/// The first, 0, is the real one.
fn member(n: i64, node_id: String) -> Member {
    Member { node_id, ..parts::member(n, "") }
}

fn name(size: u32) -> String {
    if size == 1 { "1 member, Postgres".into() } else { format!("{size} members, Postgres") }
}

impl Run<'_> {
    pub fn members(&self) -> anyhow::Result<()> {
        let Some(postgres) = &self.rig.postgres else { return Ok(()) };
        let crowds: Vec<Crowd<'_>> = SIZES
            .into_iter()
            .map(|size| Crowd::new(&self.rig, postgres, size))
            .collect::<anyhow::Result<_>>()?;
        let lines: Vec<(String, String)> =
            crowds.iter().map(|crowd| self.at_rest(crowd)).collect::<anyhow::Result<_>>()?;
        list("A node of a ring of so many, without any session", &lines);
        let owners: Vec<Owner> = crowds.iter().map(Crowd::owner).collect::<anyhow::Result<_>>()?;
        let crowds: Vec<_> = crowds.iter().zip(&owners).collect();
        self.crowded(
            "Set-up with its claim in a ring of so many, 32 at a time",
            "session",
            ("setup --connections 32", "/echo"),
            &crowds,
        )?;
        self.crowded(
            "Responses turns over WebSocket in a ring of so many, without copies, 8 at a time",
            "turn",
            ("turns --connections 8", "/memory/responses"),
            &crowds,
        )
    }

    fn at_rest(&self, crowd: &Crowd<'_>) -> anyhow::Result<(String, String)> {
        let ready = crowd.ready_ms(self.rounds().max(3))?;
        let node = crowd.start()?;
        // Four heartbeats, and six reads of the version.
        let time = Duration::from_secs(if self.options.quick { 4 } else { 12 });
        let (ours, theirs) = crowd.rest_ms(&node, time);
        let (change, longest) = crowd.changed_ms(&node)?;
        drop(node);
        crowd.forget()?;
        let text = format!(
            "ready after {} ms; {} ms of CPU a second at rest and {} of Postgres; a change is in force after {} ms, the longest {}",
            short(ready),
            short(ours),
            short(theirs),
            short(change),
            short(longest),
        );
        Ok((name(crowd.size), text))
    }

    /// One load, on a route, against all of them.
    fn crowded(
        &self,
        title: &str,
        unit: &str,
        (load, route): (&str, &str),
        crowds: &[(&Crowd<'_>, &Owner)],
    ) -> anyhow::Result<()> {
        let rows = crowds.iter().map(|(crowd, _)| Row::new(name(crowd.size), 1)).collect();
        self.fill(title, unit, rows, |at| {
            let (crowd, owner) = crowds[at];
            let keys = crowd.keys(owner, route, self.seconds())?;
            let keys = keys.to_str().context("no path of a file")?;
            let load = format!("{load} --path {route} --keys {keys}");
            measure(&self.rig, &owner.subject, &self.arguments(&load))
        })
    }
}
