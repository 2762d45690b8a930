//! Parts of the frame path, to be counted in instructions: `benches/guards.sh` runs each
//! under valgrind and compares with what is written down. A count does not depend on who
//! else uses the machine.
//!
//! `guards PART TIMES` does one part so many times; parts that cost nothing else than
//! their set-up are run zero times to find that.

#[path = "../benches/parts/mod.rs"]
mod parts;

use std::{
    hint::black_box,
    task::{Context, Waker},
};

use anyhow::{Context as _, bail, ensure};
use ringspan::{
    ids::SessionId,
    link::{Frame, pipe},
    ring::placement::Placement,
    session::{event::ServerEvent, log::Log},
    wire::{Message, Role},
};
use tokio::time::Instant;

use self::parts::{Forwarded, Script, logged, members, run, socket, turns};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().context("which part?")?;
    let times: u32 = arguments.next().context("how many times?")?.parse()?;
    let cx = &mut Context::from_waker(Waker::noop());
    match &*part {
        "server-echo-1x200" => echo(cx, Role::Server, 1, 200, times),
        "server-echo-32x100" => echo(cx, Role::Server, 32, 100, times),
        "client-echo-1x200" => echo(cx, Role::Client, 1, 200, times),
        "client-echo-32x100" => echo(cx, Role::Client, 32, 100, times),
        "link-1x200" => link(cx, times),
        "peer-echo-1x200" => peer(cx, 1, 200, times),
        "peer-echo-32x100" => peer(cx, 32, 100, times),
        "placement-300" => placement(times),
        "event-delta" => event(times),
        "turn-20-deltas" => turn(times),
        "log-1x200" => log(times),
        _ => bail!("no part {part}"),
    }
}

/// A run of frames is read, and queued and written again.
fn echo(
    cx: &mut Context<'_>,
    role: Role,
    frames: u32,
    bytes: usize,
    times: u32,
) -> anyhow::Result<()> {
    let mut socket = socket(cx, role, frames, bytes)?;
    for _ in 0..times {
        ensure!(parts::echo(&mut socket, cx)? == frames, "frames were lost");
    }
    Ok(())
}

/// A frame goes through a pipe.
fn link(cx: &mut Context<'_>, times: u32) -> anyhow::Result<()> {
    let (mut tx, mut rx) = pipe(256 * 1024);
    let batch = run(1, 200);
    for _ in 0..times {
        ensure!(tx.poll_ready(cx).is_ready(), "the window is closed");
        tx.send(Frame::Messages { batch: batch.clone(), first_seq: 1, ended: 0, create: 0 });
        ensure!(rx.poll_recv(cx).is_ready(), "the frame is lost");
        ensure!(rx.poll_recv(cx).is_pending(), "a frame too many");
    }
    Ok(())
}

/// A run of frames goes over a peer stream to a session of another node, and back.
fn peer(cx: &mut Context<'_>, frames: u32, bytes: usize, times: u32) -> anyhow::Result<()> {
    let (mut forwarded, run) = (Forwarded::new(cx)?, run(frames, bytes));
    for _ in 0..times {
        ensure!(forwarded.echo(cx, black_box(&run))? == frames, "frames were lost");
    }
    Ok(())
}

/// The owner of a session in a ring of 300 nodes.
fn placement(times: u32) -> anyhow::Result<()> {
    let placement = Placement::build(&members(300));
    for n in 0..times {
        let mut id = SessionId([0; 16]);
        // Spread over the circle, and the same in each run.
        id.0[..8].copy_from_slice(&u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_ne_bytes());
        ensure!(black_box(placement.owner(id)).is_some(), "an empty ring");
    }
    Ok(())
}

/// What a session reads of a text delta.
fn event(times: u32) -> anyhow::Result<()> {
    let text = r#"{"type":"response.output_text.delta","sequence_number":17,"item_id":"msg_1","output_index":0,"content_index":0,"delta":"forty bytes of text, more or less, here"}"#;
    let message = Message::text(text);
    for _ in 0..times {
        ensure!(black_box(ServerEvent::parse(black_box(&message))).is_some(), "no event");
    }
    Ok(())
}

/// The rules of a turn from its create to its end, each time in a new session.
fn turn(times: u32) -> anyhow::Result<()> {
    let script = Script::new(20);
    for _ in 0..times {
        ensure!(parts::turn(&mut turns(), black_box(&script))? == 23, "events were lost");
    }
    Ok(())
}

/// A frame comes into a full replay log, is read, and another is dropped for it.
fn log(times: u32) -> anyhow::Result<()> {
    const FULL: u32 = 100;
    let (run, now) = (run(1, 200), Instant::now());
    let mut log = Log::default();
    for _ in 0..times + FULL {
        let messages = logged(&mut log, black_box(&run), FULL as usize * 200, now)?;
        ensure!(messages == 1, "the frame is lost");
    }
    Ok(())
}
