//! The same number of frames in more and more sessions.

use anyhow::Context;
use rustix::process::{Resource, getrlimit};

use super::{
    measure::{Running, Sample},
    peers::Subject,
    plan::{Run, lasting, order},
    process::rss,
    report::{Row, list, table},
};

/// Sessions of a step, where the limit of descriptors allows it.
const STEPS: [u64; 4] = [100, 1000, 10_000, 20_000];
/// Descriptors of a process beside those of its sessions.
const SPARE: u64 = 500;

/// How a session is carried.
struct Way {
    name: &'static str,
    hops: u8,
    /// That a session takes in the process that has most of it.
    descriptors: u64,
    subject: fn(&Run<'_>) -> anyhow::Result<Subject>,
}

const WAYS: [Way; 2] = [
    Way {
        name: "local",
        hops: 1,
        descriptors: 2,
        subject: |run| run.rig.local("ringspan", &run.sqlite(), None),
    },
    Way {
        name: "forwarded",
        hops: 2,
        descriptors: 1,
        subject: |run| run.rig.forwarded("ringspan, forwarded", &run.sqlite(), None),
    },
];

impl Run<'_> {
    pub fn growth(&self) -> anyhow::Result<()> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        for way in WAYS {
            let most = limit.saturating_sub(SPARE) / way.descriptors;
            let mut steps = STEPS.map(|sessions| sessions.min(most)).to_vec();
            steps.dedup();
            if STEPS.last() > steps.last() {
                println!(
                    "\nA process may open {limit} files here and a session, {}, takes {} of one, so there are no more than {most}.",
                    way.name, way.descriptors
                );
            }
            self.grow(&way, &steps)?;
        }
        Ok(())
    }

    /// Each step has a subject of its own, so that none carries what another left.
    fn grow(&self, way: &Way, steps: &[u64]) -> anyhow::Result<()> {
        let row = |sessions: &u64| Row::new(format!("{sessions} sessions"), way.hops);
        let mut rows: Vec<Row> = steps.iter().map(row).collect();
        let mut memory = vec![Vec::new(); steps.len()];
        for round in 0..self.rounds() {
            for at in order(round, steps.len()) {
                let (sample, kib) = self.step(way, steps[at])?;
                rows[at].samples.push(sample);
                memory[at].push(kib);
            }
        }
        table(&format!("Growth, {}, 8,000 frames/s in all", way.name), "frame", &rows);
        let lines = rows.into_iter().zip(memory).map(|(row, kib)| {
            let kib: Vec<String> = kib.into_iter().map(|kib| format!("{kib:.1}")).collect();
            (row.name, format!("{} KiB", kib.join(", ")))
        });
        let title = format!("Memory of each of them, {}, each round", way.name);
        list(&title, &lines.collect::<Vec<_>>());
        Ok(())
    }

    /// Also the memory of a session, in KiB.
    fn step(&self, way: &Way, sessions: u64) -> anyhow::Result<(Sample, f64)> {
        let subject = (way.subject)(self)?;
        let resident = || subject.pids().into_iter().map(rss).sum::<u64>() as f64 / 1024.0;
        let before = resident();
        let every = sessions * 250;
        let load = format!("pingpong --connections {sessions} --every-us {every}");
        let load = lasting(&load, self.seconds());
        let mut running = Running::start(&self.rig, &subject, &load)
            .with_context(|| format!("{sessions} sessions"))?;
        let sample = running.counted(&self.rig, &subject)?;
        Ok((sample, (resident() - before) / sessions as f64))
    }
}
