//! What clients that do harm cost a node and its other clients, in figures: `./test.sh overload`
//! prints the table. `RINGSPAN_BIN` names another binary than the one built with the tests.

mod attackers;
mod regulars;

use std::{collections::BTreeSet, time::Duration};

use attackers::{Attack, PLACES, Refusals};
use regulars::{Latencies, Regulars, owned_by};
use tokio::time::sleep;

use crate::support::{Ring, RingOptions, eventually, process::Held};

/// How long the regular clients are watched alone.
const ALONE: Duration = Duration::from_secs(5);
/// When memory is looked at again after an attack.
const AFTER: Duration = Duration::from_secs(2);
/// How long what an attack leaves behind may stay.
const CLEARED: Duration = Duration::from_mins(1);
/// How often the node is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Longest that a regular client may wait for an answer, beside any attack, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);
/// What any attack may cost a node.
const MEMORY: u64 = 512 << 20;

/// Streams whose sessions do not outlive their clients: a session that is left reads on, as
/// fast as its upstream speaks.
const ENDLESS: &str = r#"
[[upstream]]
name = "endless"
url = "ws://{sample}/stream"
[[route]]
path = "/endless"
profile = "opaque"
upstream = "endless"
session_key = ["query:session"]
detach_ttl = "0s"
"#;

/// One line of the table.
struct Row {
    what: &'static str,
    before: Held,
    peak: Held,
    after: Held,
    refusals: Refusals,
    echoes: Latencies,
    turns: Latencies,
    /// Regular clients that got no answer, each time.
    failed: Vec<String>,
}

impl Row {
    const HEAD: &str = "| Beside | MiB before, peak, after | Descriptors before, peak, after \
        | Refused, with `Retry-After` | Closed | Echo p50, p99 | First event p50, p99 | Failed |\n\
        |---|---|---|---|---|---|---|---|";

    fn print(&self) -> String {
        let Self { what, before, peak, after, refusals, echoes, turns, failed, .. } = self;
        let [before_mib, peak_mib, after_mib] = [before, peak, after].map(|it| it.resident >> 20);
        let Refusals { refused, advised, closed } = refusals;
        format!(
            "| {what} | {before_mib}, {peak_mib}, {after_mib} | {}, {}, {} | {refused}, {advised} \
             | {closed} | {echoes} | {turns} | {} |",
            before.descriptors,
            peak.descriptors,
            after.descriptors,
            failed.len()
        )
    }

    /// Nobody but `exempt` was without an answer, nobody waited for long, and it cost little.
    fn judge(&self, exempt: &BTreeSet<String>) {
        let Self { what, before, peak, echoes, turns, failed, .. } = self;
        let failed: Vec<_> = failed.iter().filter(|name| !exempt.contains(*name)).collect();
        assert!(failed.is_empty(), "{what}: {failed:?}");
        let cost = peak.resident - before.resident;
        assert!(cost < MEMORY, "{what}: {cost} bytes");
        assert!(echoes.worst() < PROMPT && turns.worst() < PROMPT, "{what}: {echoes}, {turns}");
    }
}

/// Lets the attack go on beside the regular clients.
async fn measure(ring: &Ring, regulars: &Regulars, attack: &Attack) -> Row {
    let node = ring.node(0);
    let before = node.process().held();
    regulars.take();
    let mut peak = before;
    let mut going_on = std::pin::pin!(attack.run(ring));
    let refusals = loop {
        tokio::select! {
            refusals = going_on.as_mut() => break refusals,
            () = sleep(LOOK) => {}
        }
        let now = node.process().held();
        peak.resident = peak.resident.max(now.resident);
        peak.descriptors = peak.descriptors.max(now.descriptors);
    };
    let (echoes, turns, failed) = regulars.take();
    // Sessions stay for a time without clients: they hold their upstream connection.
    let room = before.descriptors + attack.leaves();
    eventually("what the attack opened is closed", CLEARED, async || {
        (node.process().held().descriptors <= room).then_some(())
    })
    .await;
    sleep(AFTER).await;
    Row {
        what: attack.name(),
        before,
        peak,
        after: node.process().held(),
        refusals,
        echoes,
        turns,
        failed,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh overload"]
async fn clients_that_do_harm_cost_bounded_memory_and_regular_ones_no_answer() {
    let mut options = RingOptions::nodes(2)
        .setting("max_clients", 2000)
        .setting("upgrade_timeout", "\"3s\"")
        .setting("write_timeout", "\"3s\"")
        .setting("turns_per_principal", 16);
    options.tables = ENDLESS.to_owned();
    let ring = Ring::start(options).await;
    let regulars = Regulars::start(&ring.node(0).client_url);
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        println!("beside {}", attack.name());
        rows.push(measure(&ring, &regulars, &attack).await);
        println!("{}", rows.last().unwrap().print());
    }
    regulars.stop();
    println!("{}", Row::HEAD);
    for row in &rows {
        println!("{}", row.print());
    }
    for row in rows {
        row.judge(&BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh overload"]
async fn a_crowd_beyond_the_places_of_a_node_is_served_in_the_end_and_costs_regular_ones_no_answer()
{
    let options = RingOptions::nodes(2).setting("max_clients", PLACES);
    let ring = Ring::start(options).await;
    let regulars = Regulars::start(&ring.node(0).client_url);
    regulars.are_served(CLEARED).await;
    // An opaque session ends with its owner, and its client has to come back with all others.
    let closed = owned_by(&ring, &ring.node(1).id).await;
    let row = measure(&ring, &regulars, &Attack::Storm).await;
    println!("{}\n{}", Row::HEAD, row.print());
    row.judge(&closed);
    regulars.are_served(CLEARED).await;
    regulars.stop();
}
