//! Compressed bodies of HTTP requests: what they become, and what they may cost.

use super::*;

const MIB: usize = 1 << 20;

/// A turn as Codex sends it: zstd of level 3 in one go, without a content size, in a window of
/// 2 MiB.
const CODEX: &str = "\
    28b52ffd0058fd050002cf291d8037cd01607831112b56ee868274434988d89b\
    18174ecf37959001d603091bab053e1f3e608ea083ccae24d9bad110a9949c33\
    c523703ecb559737b667453cc860e61a3ce26167b938b71d9f8f5222c814ce8a\
    99eb624818124ec4238571d5b39524f2b97809be66db52497d552217b36bf3f9\
    98ccc53f8eea139fbf0e6b44e1bc6d0d56fd38c5a19291a838c5d9295a06f8ac\
    2ad3a2c656557231614000d875f88c3732312207005d184666918b79615cf251\
    697f9dbaa2ec527b";

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const RAW: usize = 0;
const RUN: usize = 1;
const COMPRESSED: usize = 2;

/// A block of zstd; `size` is what its kind counts.
fn block(kind: usize, size: usize, content: &[u8], last: bool) -> Vec<u8> {
    let head = size << 3 | kind << 1 | usize::from(last);
    [&head.to_le_bytes()[..3], content].concat()
}

/// A frame of blocks in a window of this descriptor, without a content size.
fn frame(window: u8, blocks: &[Vec<u8>]) -> Vec<u8> {
    [&MAGIC[..], &[0, window], &blocks.concat()].concat()
}

/// The descriptor of a window of so many mebibytes, a power of two.
fn window(mib: usize) -> u8 {
    u8::try_from((mib.ilog2() + 10) << 3).unwrap()
}

/// So many blocks of 128 KiB of spaces each, in four bytes each.
fn spaces(blocks: usize, last: bool) -> Vec<Vec<u8>> {
    (1..=blocks).map(|n| block(RUN, 128 * 1024, b" ", last && n == blocks)).collect()
}

/// A turn as it is, in a frame.
fn stored(text: &str) -> Vec<u8> {
    let json = json!({ "model": "m", "store": false, "input": text }).to_string();
    frame(window(1), &[block(RAW, json.len(), json.as_bytes(), true)])
}

impl Front {
    /// Status and document that a compressed body is answered with.
    async fn zstd(&self, body: &[u8]) -> (u16, Value) {
        let headers = format!("{CLOSE}content-encoding: zstd\r\n");
        let answer = self.answer(&post("/v1/responses", &headers, body)).await;
        (answer.status, answer.json())
    }

    async fn refuses(&self, body: &[u8], status: u16, code: &str) {
        let (got, answer) = self.zstd(body).await;
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{answer}");
    }
}

#[tokio::test]
async fn a_compressed_body_of_codex_is_a_turn() {
    let front = Front::start(limits()).await;
    let body: Vec<u8> = CODEX
        .as_bytes()
        .chunks(2)
        .map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap())
        .collect();
    let (status, answer) = front.zstd(&body).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.to_string().contains("compressed hello"), "{answer}");
}

#[tokio::test]
async fn a_frame_that_asks_for_more_memory_than_any_message_needs_is_refused_by_its_header() {
    let front = Front::start(limits()).await;
    // 16 GiB, and a gibibyte that would all have to be kept: in 32 KiB.
    front.refuses(&frame(0xC0, &spaces(8 * 1024, false)), 413, "frame_too_large").await;
    front.refuses(&frame(window(16), &spaces(1, false)), 413, "frame_too_large").await;
    // A frame in one segment that says to hold a gibibyte.
    let size = (1_u32 << 30).to_le_bytes();
    let single = [&MAGIC[..], &[0xA0], &size, &spaces(1, false).concat()].concat();
    front.refuses(&single, 413, "frame_too_large").await;
    let hidden = [stored("first"), frame(0xC0, &spaces(8, true))].concat();
    front.refuses(&hidden, 413, "frame_too_large").await;
}

#[tokio::test]
async fn a_block_that_becomes_more_than_a_block_may_is_no_zstd() {
    let front = Front::start(limits()).await;
    // One literal, then 4,096 matches of 65,539 bytes in two bytes each.
    let head = [1 << 3, b'a', 144, 0, 0b0101_0100, 0, 0, 52];
    let block_of_matches = [&head[..], &[0; 8192], &[1]].concat();
    let blocks = [
        block(RAW, 8, b"        ", false),
        block(COMPRESSED, block_of_matches.len(), &block_of_matches, true),
    ];
    front.refuses(&frame(window(8), &blocks), 400, "invalid_request").await;
}

#[tokio::test]
async fn what_frames_become_together_is_bounded_like_one_message() {
    let front = Front::start(limits()).await;
    let within = [frame(window(8), &spaces(7, true)), stored("second frame")].concat();
    let (status, answer) = front.zstd(&within).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.to_string().contains("second frame"), "{answer}");
    let skipped = [&[0x50, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 7, 7], &stored("behind")[..]].concat();
    assert_eq!(front.zstd(&skipped).await.0, 200);
    let above = [frame(window(8), &spaces(7, true)), frame(window(8), &spaces(2, true))].concat();
    front.refuses(&above, 413, "frame_too_large").await;
    front.refuses(&stored("cut short")[..20], 400, "invalid_request").await;
}

#[tokio::test]
async fn what_is_inflated_counts_among_the_unfinished_messages_of_the_node() {
    let front = Front::start(limits()).await;
    let body = [frame(window(8), &spaces(7, true)), stored("counted")].concat();
    let mut others = front.edge.unfinished.share();
    assert!(others.holds(256 * MIB));
    front.refuses(&body, 503, "session_unavailable").await;
    drop(others);
    assert_eq!(front.zstd(&body).await.0, 200);
    let mut all = front.edge.unfinished.share();
    assert!(all.holds(256 * MIB), "what was inflated is given back");
}

/// A turn of this many bytes as its client sends it.
fn of_size(bytes: usize) -> Vec<u8> {
    let body = json!({ "model": "m", "store": false, "input": "x".repeat(bytes) }).to_string();
    post("/v1/responses", CLOSE, body)
}

/// One of the largest bodies.
const LARGE: usize = MIB - 1024;

/// Leaves so much of the budget, or less where others have it, that it has room for nothing
/// like [`LARGE`] beside one.
fn nearly_all(front: &Front) -> crate::wire::Share {
    let mut others = front.edge.unfinished.share();
    assert!(others.holds(256 * MIB - LARGE + 100_000), "one waits");
    others
}

#[tokio::test]
async fn a_body_counts_for_as_long_as_it_waits_for_its_session() {
    let front = Front::before(Gate::with_permits(SampleAuth::Open, 0).await, limits()).await;
    let mut first = TcpStream::connect(front.addr).await.unwrap();
    first.write_all(&of_size(LARGE)).await.unwrap();
    eventually("it waits for its upstream", async || front.gate.dials() == 1).await;
    let others = nearly_all(&front);
    let second = front.answer(&of_size(LARGE / 2)).await;
    assert_eq!((second.status, &*second.headers["retry-after"]), (503, "1"));
    assert_eq!(second.json()["error"]["code"], "session_unavailable");

    front.gate.permits.add_permits(10);
    let mut answer = String::new();
    soon("the answer", first.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(front.answer(&of_size(LARGE / 2)).await.status, 200);
    drop(others);
    let mut all = front.edge.unfinished.share();
    assert!(all.holds(256 * MIB), "all is given back");
}

#[tokio::test]
async fn a_message_counts_for_as_long_as_it_waits_for_its_session() {
    let front = Front::before(Gate::with_permits(SampleAuth::Open, 0).await, limits()).await;
    let mut first = front.client("/v1/responses").await;
    first.create(&"x".repeat(LARGE)).await;
    eventually("it waits for its upstream", async || front.gate.dials() == 1).await;
    let _others = nearly_all(&front);
    let mut second = front.client("/v1/responses").await;
    second.create(&"x".repeat(LARGE / 2)).await;
    second.closed_with(1013).await;

    front.gate.permits.add_permits(10);
    first.until("response.completed").await;
    let mut third = front.client("/v1/responses").await;
    third.create(&"x".repeat(LARGE / 2)).await;
    third.until("response.completed").await;
}
