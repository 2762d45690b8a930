//! Sessions that get another owner while their clients stay.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{
    measure::Running,
    peers::Subject,
    plan::Run,
    report::{list, short},
    ring::{Database, Node},
};

/// Sessions whose owner drains or is killed.
const SESSIONS: u32 = 1000;
/// Sessions that go one by one.
const SINGLE: f64 = 60.0;

impl Run<'_> {
    /// Idle Responses sessions whose owner drains or is killed, all at once.
    pub fn moves(&self) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for killed in [false, true] {
            for (name, database) in self.databases()? {
                let what = if killed { "killed" } else { "drained" };
                lines.push((format!("{name}, owner {what}"), self.all_at_once(&database, killed)?));
            }
        }
        list(&format!("{SESSIONS} idle Responses sessions move"), &lines);
        Ok(())
    }

    fn all_at_once(&self, database: &Database, killed: bool) -> anyhow::Result<String> {
        let (edge, mut owner) = self.rig.pair(database, None)?;
        let subject = Subject {
            name: "ringspan",
            hops: 2,
            entry: edge.client,
            processes: vec![edge.process],
        };
        let load = self.arguments(&format!("moves --connections {SESSIONS}"));
        let mut running = Running::start(&self.rig, &subject, &load)?;
        let started = Instant::now();
        if killed {
            owner.process.kill();
        } else {
            let pid = owner.process.id().to_string();
            Command::new("kill").args(["-TERM", &pid]).status()?;
            owner.process.ended(Duration::from_mins(2))?;
        }
        let ended = started.elapsed();
        running.nudge()?;
        let sample = running.end()?;
        Ok(format!(
            "gone after {:.2} s; next turn of {} of {SESSIONS} sessions in {:.2} s, first event p50 {} ms, p99 {} ms",
            ended.as_secs_f64(),
            sample.units,
            sample.seconds,
            short(sample.p50),
            short(sample.p99),
        ))
    }

    /// Idle Responses sessions that a node hands to one that joins, twenty a second, so that
    /// each goes alone. Timed by their owner, from the offer to the end.
    pub fn handoffs(&self) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for (name, database) in self.databases()? {
            lines.push((name.to_owned(), self.one_by_one(&database)?));
        }
        list("Handoff of one idle Responses session", &lines);
        Ok(())
    }

    fn one_by_one(&self, database: &Database) -> anyhow::Result<String> {
        // A round of the rebalancing each two seconds, and nobody has to be still for long.
        let flags = ["--heartbeat-interval=500ms", "--ring-poll=500ms", "--rebalance-idle=500ms"];
        let flags = [&flags[..], &["--rebalance-rate=20"]].concat();
        let owner = self.rig.nodes.start_with(database, 1, None, &flags)?;
        let subject =
            Subject { name: "ringspan", hops: 1, entry: owner.client, processes: Vec::new() };
        let load = self.arguments(&format!("moves --connections {}", SINGLE * 2.0));
        let load = Running::start(&self.rig, &subject, &load)?;
        let heir = self.rig.nodes.start_with(database, 1000, None, &flags)?;
        let deadline = Instant::now() + Duration::from_mins(1);
        let times = loop {
            let times = Times::of(&owner)?;
            if times.count >= SINGLE {
                break times;
            }
            ensure!(Instant::now() < deadline, "{} sessions moved in a minute", times.count);
            sleep(Duration::from_millis(100));
        };
        drop((load, heir));
        Ok(format!(
            "p50 {} ms (by the histogram), mean {} ms, of {}",
            short(times.p50_ms()?),
            short(times.mean_ms()),
            times.count
        ))
    }
}

/// A node's histogram of the sessions that it has given away.
struct Times {
    count: f64,
    sum: f64,
    /// Upper bound in seconds, and how many are below.
    buckets: Vec<(f64, f64)>,
}

impl Times {
    fn of(node: &Node) -> anyhow::Result<Self> {
        let mut times = Self { count: 0.0, sum: 0.0, buckets: Vec::new() };
        for line in node.metrics()?.lines() {
            let Some(rest) = line.strip_prefix("ringspan_handoff_seconds_") else { continue };
            let (what, value) = rest.rsplit_once(' ').context("a metric without a value")?;
            let value = value.parse::<f64>()?;
            if !what.contains("outcome=\"ok\"") || !what.contains("reason=\"balance\"") {
                continue;
            }
            if what.starts_with("count") {
                times.count = value;
            } else if what.starts_with("sum") {
                times.sum = value;
            } else if let Some((_, bound)) = what.split_once("le=\"") {
                let bound = bound.split('"').next().context("a bound without end")?;
                times.buckets.push((bound.replace("+Inf", "inf").parse()?, value));
            }
        }
        Ok(times)
    }

    fn mean_ms(&self) -> f64 {
        self.sum / self.count * 1e3
    }

    /// As if all of a bucket were spread over it evenly.
    fn p50_ms(&self) -> anyhow::Result<f64> {
        let half = self.count / 2.0;
        let mut below = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= half {
                let part = (half - below.1) / (count - below.1);
                return Ok((below.0 + (bound - below.0) * part) * 1e3);
            }
            below = (*bound, *count);
        }
        anyhow::bail!("no handoff in the histogram")
    }
}
