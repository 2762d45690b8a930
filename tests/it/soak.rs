//! A ring that is rolled, killed and cut off from its database for as long as one likes, while
//! one of its nodes stays: what that node holds must not grow.

use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::roll::{number, seed};
use crate::support::{
    RingOptions, Store,
    checker::{Conduct, Invariant},
    crowd::{Crowd, Pace},
    process::Held,
    trial::Trial,
};

/// How far medians of the last third may be above those of the second.
const GROWTH: f64 = 1.25;

fn median(samples: &[Held], of: impl Fn(&Held) -> u64) -> u64 {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// Trouble for `time`, and six times at least, chosen by the seed; every node but the last is
/// struck. What the last held after each.
async fn soak(clients: usize, time: Duration, pace: Pace) -> Vec<Held> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let trial = Trial::start(RingOptions::nodes(3).store(Store::OwnPostgres), 0).await;
    let (stays, struck) = trial.ring.nodes.split_last().unwrap();
    let crowd = Crowd::start(&trial.balancer.url, clients, pace, seed);
    crowd.until_more(1).await;
    let began = Instant::now();
    let mut samples = Vec::new();
    while began.elapsed() < time || samples.len() < 6 {
        let node = &struck[random.random_range(0..struck.len())];
        let trouble = match random.random_range(0..3) {
            0 => {
                node.sigterm();
                let limit = trial.ring.options.timing.drain() + Duration::from_secs(5);
                assert_eq!(node.wait_exit(limit).await, 0, "{}", node.log());
                node.restart().await;
                format!("{} restarted", node.id)
            }
            1 => {
                node.kill9().await;
                crowd.until_more(1).await;
                node.restart().await;
                format!("{} killed", node.id)
            }
            _ => {
                let server = trial.ring.server.as_ref().expect("it has a server of its own");
                tokio::task::block_in_place(|| server.stop_immediate());
                tokio::task::block_in_place(|| server.start_again());
                "database stopped".to_owned()
            }
        };
        trial.ring.until_whole().await;
        crowd.until_more(1).await;
        let now = stays.process().held();
        println!(
            "{:>5} s  {trouble}: {} turns so far; the node that stays: {} MiB, {} descriptors, {} copies",
            began.elapsed().as_secs(),
            crowd.turns(),
            now.resident >> 20,
            now.descriptors,
            stays.metric("ringspan_heir_conversations").await,
        );
        samples.push(now);
    }
    let outcome = crowd.stop().await;
    println!(
        "{} turns, {} of unknown outcome, {} conversations forgotten; {:?}",
        outcome.turns, outcome.unknown, outcome.forgotten, outcome.hidden
    );
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    let verdict = trial.judge(Conduct::Losses, outcome).await;
    verdict.assert_holds();
    assert!(verdict.checked(Invariant::ALL[0]) > clients, "hardly anything was looked at");
    samples
}

/// Neither memory nor descriptors grow any more once the ring has been at work for a while.
fn assert_flat(samples: &[Held]) {
    let third = samples.len() / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    for (what, of) in [
        ("bytes resident", (|held: &Held| held.resident) as fn(&Held) -> u64),
        ("descriptors", |held: &Held| held.descriptors),
    ] {
        let (before, after) = (median(middle, of), median(last, of));
        println!("{what}: median {before} in the second third, {after} in the last");
        #[expect(clippy::cast_precision_loss, reason = "small enough")]
        let growth = after as f64 / before as f64;
        assert!(growth <= GROWTH, "{what} grew from {before} to {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_the_database_fail_in_turn_and_the_node_that_stays_breaks_no_invariant() {
    let samples =
        soak(30, Duration::ZERO, Pace { deltas: 8, delay: 20, think: 400, anew_after: Some(10) })
            .await;
    let most = samples.iter().map(|held| held.descriptors).max().unwrap();
    assert!(most < 400, "{most} descriptors for 30 clients");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh soak"]
async fn long_soak() {
    let minutes = number("RINGSPAN_SOAK_MINUTES", 30) as u64;
    let clients = number("RINGSPAN_CLIENTS", 2000);
    // As many turns a second as a tenth of the clients without a pause would do.
    let think = u64::try_from(clients).unwrap() * 15;
    let pace = Pace { deltas: 10, delay: 20, think, anew_after: Some(20) };
    assert_flat(&soak(clients, Duration::from_secs(60 * minutes), pace).await);
}
