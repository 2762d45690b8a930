//! What is measured, in which order.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{
    measure::{Running, Sample, idle_kib, measure, settled},
    peers::{Rig, Subject},
    process::rss,
    report::{Row, list, median, table},
    ring::{Database, Postgres},
};

#[derive(Args)]
pub struct Options {
    /// The program to measure.
    #[arg(long)]
    ringspan: PathBuf,
    /// One short round.
    #[arg(long)]
    pub quick: bool,
    /// Only the parts whose name holds one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Of frames, only the loads whose title holds one of these.
    #[arg(long, value_delimiter = ',')]
    load: Vec<String>,
    /// Rounds in which the subjects take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Also a ringspan with as many threads as processors, and not bound to one.
    #[arg(long)]
    threads: bool,
}

/// Work for all subjects of a part.
struct Work {
    title: &'static str,
    load: &'static str,
}

/// A unit is a frame that went through: a message and its echo are two.
const FRAMES: [Work; 5] = [
    Work { title: "Ping-pong 200 B, 32 connections", load: "pingpong --connections 32" },
    Work { title: "Ping-pong 200 B, 256 connections", load: "pingpong --connections 256" },
    Work {
        title: "256 token streams of 100 B, 20,000 frames/s in all",
        load: "tokens --connections 256 --bytes 100 --every-us 12800",
    },
    Work { title: "Stream 32 × 100 B", load: "flood --connections 32 --bytes 100" },
    Work { title: "Stream 32 × 4 KiB", load: "flood --connections 32 --bytes 4096" },
];

/// So that 20 of the 2,000 set-ups at 200 a second are beyond their p99.
const PACED_SECONDS: f64 = 10.0;

type Part<'a> = fn(&Run<'a>) -> anyhow::Result<()>;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let run = Run { rig: Rig::start(options.ringspan.clone())?, options };
    println!("Rounds: {}, {} s each. Medians.", run.rounds(), run.seconds());
    let parts: [(&str, Part<'_>); 10] = [
        ("frames", Run::frames),
        ("idle", Run::idle),
        ("setup", Run::setups),
        ("turns", Run::turns),
        ("start", Run::starts),
        ("moves", Run::moves),
        ("handoffs", Run::handoffs),
        ("slow", Run::slow),
        ("growth", Run::growth),
        ("members", Run::members),
    ];
    for (name, part) in parts {
        if options.only.is_empty() || options.only.iter().any(|only| name.contains(&**only)) {
            part(&run).with_context(|| format!("in part {name}"))?;
        }
    }
    Ok(())
}

/// A load's arguments.
pub fn lasting(load: &str, seconds: f64) -> Vec<String> {
    let mut arguments = vec!["--kind".to_owned()];
    arguments.extend(load.split(' ').map(str::to_owned));
    arguments.extend(["--seconds".into(), seconds.to_string()]);
    arguments
}

/// Who comes when: each round begins with the next one, so that nobody is always the first, which
/// finds the machine as other work left it.
pub fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| (at + round) % count)
}

pub struct Run<'a> {
    pub rig: Rig,
    pub options: &'a Options,
}

impl Run<'_> {
    pub fn rounds(&self) -> usize {
        if self.options.quick { 1 } else { self.options.rounds }
    }

    pub fn seconds(&self) -> f64 {
        if self.options.quick { 1.0 } else { self.options.seconds }
    }

    pub fn sqlite(&self) -> Database {
        Database::sqlite(self.rig.dir())
    }

    /// A new database in the Postgres server, if there is one.
    pub fn postgres(&self) -> anyhow::Result<Option<Database>> {
        self.rig.postgres.as_ref().map(Postgres::database).transpose()
    }

    /// A new one of each kind there is.
    pub fn databases(&self) -> anyhow::Result<Vec<(&'static str, Database)>> {
        let mut all = vec![("SQLite", self.sqlite())];
        all.extend(self.postgres()?.map(|postgres| ("Postgres", postgres)));
        Ok(all)
    }

    pub fn arguments(&self, load: &str) -> Vec<String> {
        lasting(load, self.seconds())
    }

    /// All subjects in turn under one load, several times.
    fn rounds_of(
        &self,
        title: &str,
        unit: &str,
        load: &str,
        subjects: &[Subject],
    ) -> anyhow::Result<()> {
        self.rounds_with(title, unit, &self.arguments(load), subjects)
    }

    fn rounds_with(
        &self,
        title: &str,
        unit: &str,
        arguments: &[String],
        subjects: &[Subject],
    ) -> anyhow::Result<()> {
        let rows = subjects.iter().map(|subject| Row::new(subject.name, subject.hops)).collect();
        self.fill(title, unit, rows, |at| measure(&self.rig, &subjects[at], arguments))
    }

    /// Has `sample` measure each row, by its index, once in each round, and prints them.
    pub fn fill(
        &self,
        title: &str,
        unit: &str,
        mut rows: Vec<Row>,
        mut sample: impl FnMut(usize) -> anyhow::Result<Sample>,
    ) -> anyhow::Result<()> {
        for round in 0..self.rounds() {
            for at in order(round, rows.len()) {
                rows[at].samples.push(sample(at)?);
            }
        }
        table(title, unit, &rows);
        Ok(())
    }

    fn hops(&self) -> anyhow::Result<Vec<Subject>> {
        let mut all = vec![self.rig.direct(), self.rig.splice()?];
        all.extend(self.rig.nginx(1)?);
        all.extend(self.rig.haproxy(1)?);
        all.push(self.rig.local("ringspan", &self.sqlite(), None)?);
        if self.options.threads {
            all.push(self.rig.local("ringspan, 2 threads", &self.sqlite(), Some(2))?);
        }
        all.extend(self.rig.nginx(2)?);
        all.extend(self.rig.haproxy(2)?);
        all.push(self.rig.forwarded("ringspan, forwarded", &self.sqlite(), None)?);
        if self.options.threads {
            let name = "ringspan, forwarded, 2 threads";
            all.push(self.rig.forwarded(name, &self.sqlite(), Some(2))?);
        }
        Ok(all)
    }

    fn frames(&self) -> anyhow::Result<()> {
        let subjects = self.hops()?;
        let only = &self.options.load;
        let wanted =
            |work: &&Work| only.is_empty() || only.iter().any(|only| work.title.contains(&**only));
        for work in FRAMES.iter().filter(wanted) {
            self.rounds_of(work.title, "frame", work.load, &subjects)?;
        }
        Ok(())
    }

    fn idle(&self) -> anyhow::Result<()> {
        let sessions = if self.options.quick { 2000 } else { 5000 };
        let mut lines = Vec::new();
        for subject in self.hops()?.iter().filter(|subject| subject.hops > 0) {
            let kib = idle_kib(&self.rig, subject, sessions)?;
            lines.push((subject.name.to_owned(), format!("{kib:.1} KiB")));
        }
        list(&format!("Memory of an idle session, {sessions} sessions"), &lines);
        Ok(())
    }

    fn setups(&self) -> anyhow::Result<()> {
        let mut subjects = Vec::new();
        subjects.extend(self.rig.nginx(1)?);
        subjects.extend(self.rig.haproxy(1)?);
        subjects.push(self.rig.local("ringspan, SQLite", &self.sqlite(), None)?);
        if let Some(postgres) = self.postgres()? {
            subjects.push(self.rig.local("ringspan, Postgres", &postgres, None)?);
        }
        subjects.extend(self.rig.nginx(2)?);
        subjects.push(self.rig.forwarded("ringspan, forwarded, SQLite", &self.sqlite(), None)?);
        self.rounds_of(
            "Set-up with its claim, 32 at a time",
            "session",
            "setup --connections 32",
            &subjects,
        )?;
        let paced =
            lasting("setup --connections 20 --every-us 100000", self.seconds().max(PACED_SECONDS));
        self.rounds_with("Set-up, 200 per second", "session", &paced, &subjects)
    }

    fn turns(&self) -> anyhow::Result<()> {
        let mut subjects = vec![
            self.rig.local("ringspan, SQLite", &self.sqlite(), None)?,
            self.rig.forwarded("ringspan, forwarded, SQLite", &self.sqlite(), None)?,
        ];
        if let Some(postgres) = self.postgres()? {
            subjects.push(self.rig.local("ringspan, Postgres", &postgres, None)?);
        }
        for (title, load) in [
            (
                "Responses turns of 20 deltas over HTTP, 8 at a time (latency: first event)",
                "http-turns --connections 8",
            ),
            ("The same, 1 at a time", "http-turns --connections 1"),
        ] {
            self.turns_of(title, load, &subjects)?;
        }
        subjects.insert(0, self.rig.direct());
        for (title, load) in [
            ("Responses turns over WebSocket, 8 at a time", "turns --connections 8"),
            ("The same, 1 at a time", "turns --connections 1"),
        ] {
            self.turns_of(title, load, &subjects)?;
        }
        Ok(())
    }

    /// Each ringspan on the default route and on one that keeps nothing of a turn.
    fn turns_of(&self, title: &str, load: &str, subjects: &[Subject]) -> anyhow::Result<()> {
        let bare = format!("{load} --path /bare/responses");
        let (mut rows, mut loads) = (Vec::new(), Vec::new());
        for subject in subjects {
            rows.push(Row::new(subject.name, subject.hops));
            loads.push((subject, self.arguments(load)));
            if subject.hops > 0 {
                let name = format!("{}, no ledger, no copies", subject.name);
                rows.push(Row::new(name, subject.hops));
                loads.push((subject, self.arguments(&bare)));
            }
        }
        self.fill(title, "turn", rows, |at| measure(&self.rig, loads[at].0, &loads[at].1))
    }

    /// From the start of a process to its word that it is ready, on a migrated database.
    fn starts(&self) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for (name, database) in self.databases()? {
            drop(self.rig.nodes.start(&database, 100, None)?);
            let mut times = Vec::new();
            for _ in 0..self.rounds().max(3) {
                let node = self.rig.nodes.start(&database, 100, None)?;
                times.push(node.started_in.as_secs_f64() * 1e3);
            }
            lines.push((name.to_owned(), format!("{:.0} ms", median(times))));
        }
        list("Start to ready", &lines);
        Ok(())
    }

    /// Sessions that nobody reads beside 500 that are read: while everything on the way to such
    /// a client fills, when it is full, and when those clients are gone and their sessions are
    /// still there. Each subject meets all of that in turn, so that what else the machine
    /// does falls on all figures.
    fn slow(&self) -> anyhow::Result<()> {
        const STEPS: [&str; 4] = ["alone", "as 50 stop reading", "beside them", "as they leave"];
        let subjects = [
            self.rig.local("ringspan", &self.sqlite(), None)?,
            self.rig.forwarded("ringspan, forwarded", &self.sqlite(), None)?,
        ];
        let load = "pingpong --connections 500 --every-us 250000";
        let long = self.arguments(load);
        // Filling takes no longer, nor do the sessions live longer without their clients.
        let second = lasting(&format!("{load} --warm-seconds 2"), 1.0);
        let stalled = self.arguments("idle --connections 1 --stalled 50 --warm-seconds 0");
        let row = |subject: &Subject, step: &str| {
            Row::new(format!("{}, {step}", subject.name), subject.hops)
        };
        let mut rows: Vec<Vec<Row>> = subjects
            .iter()
            .map(|subject| STEPS.iter().map(|step| row(subject, step)).collect())
            .collect();
        let mut memory = Vec::new();
        for round in 0..self.rounds() {
            for at in order(round, subjects.len()) {
                let (subject, rows) = (&subjects[at], &mut rows[at]);
                rows[0].samples.push(measure(&self.rig, subject, &long)?);
                let mut filling = Running::start(&self.rig, subject, &second)?;
                let stalled = Running::start(&self.rig, subject, &stalled)?;
                rows[1].samples.push(filling.end()?);
                drop(filling);
                settled(subject)?;
                rows[2].samples.push(measure(&self.rig, subject, &long)?);
                let resident = subject.pids().into_iter().map(rss).sum::<u64>() >> 20;
                memory.push((subject.name.to_owned(), format!("{resident} MiB")));
                let mut leaving = Running::start(&self.rig, subject, &second)?;
                drop(stalled);
                rows[3].samples.push(leaving.end()?);
            }
        }
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        table("500 clients, 4,000 frames/s, and 50 that do not read", "frame", &rows);
        list("Resident memory beside them", &memory);
        Ok(())
    }
}
