use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        protocol::{
            Role as PeerRole,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use super::*;
use crate::wire::{BatchBuilder, CloseFrame, Kind, Message};

const MAX: usize = 1 << 20;

fn options(deflate: bool) -> SocketOptions {
    SocketOptions { max_message_bytes: MAX, deflate }
}

fn socket<S>(io: S, role: Role) -> Socket<S> {
    Socket::new(io, role, options(false), Bytes::new())
}

fn batch_of(messages: &[Message]) -> Batch {
    let mut builder = BatchBuilder::default();
    for message in messages {
        builder.push(message.kind, &message.payload);
    }
    builder.finish()
}

async fn peer(io: DuplexStream, ours: Role) -> WebSocketStream<DuplexStream> {
    let role = if ours == Role::Server { PeerRole::Client } else { PeerRole::Server };
    WebSocketStream::from_raw_socket(io, role, None).await
}

/// Runs `test` on a paused clock, so that a hang fails at once.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(Duration::from_mins(1), test).await })
        .expect("the test hangs");
}

async fn received(socket: &mut Socket<DuplexStream>, count: usize) -> Vec<Message> {
    let mut all = Vec::new();
    while all.len() < count {
        match socket.recv().await {
            Some(Ok(Incoming::Messages(batch))) => all.extend(batch.messages()),
            Some(Ok(Incoming::Ping(_) | Incoming::Pong(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    all
}

/// Shows sizes only, or a failure fills the screen.
struct Messages(Vec<Message>);

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|m| (m.kind, m.payload.len()))).finish()
    }
}

fn messages() -> impl Strategy<Value = Messages> {
    let size = prop_oneof![4 => 0_usize..200, 1 => 60_000_usize..140_000, 1 => 4000_usize..9000];
    let message = (any::<bool>(), size, any::<u8>()).prop_map(|(text, size, seed)| {
        if text {
            let text: String =
                "aé漢𝄞".chars().cycle().skip(usize::from(seed % 4)).take(size / 3).collect();
            Message::text(text)
        } else {
            let bytes = (0..size).map(|n| seed.wrapping_add(n.to_le_bytes()[0]));
            Message::binary(bytes.collect::<Vec<u8>>())
        }
    });
    prop::collection::vec(message, 1..24).prop_map(Messages)
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

fn to_peer(message: &Message) -> tungstenite::Message {
    match message.kind {
        Kind::Text => {
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            tungstenite::Message::text(text)
        }
        Kind::Binary => tungstenite::Message::binary(message.payload.clone()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_independent_peer_hears_what_is_sent(
        Messages(messages) in messages(), role in role(), pipe in 1_usize..100_000, split in 0_usize..24,
    ) {
        run(async {
            let (ours, theirs) = duplex(pipe);
            let (mut ours, mut theirs) = (socket(ours, role), peer(theirs, role).await);
            let split = split.min(messages.len());
            let send = async {
                ours.queue(&batch_of(&messages[..split]));
                ours.queue_ping(b"alive");
                ours.queue(&batch_of(&messages[split..]));
                ours.queue_close(1012, "service restart");
                ours.queue(&batch_of(&messages));
                ours.flush().await.unwrap();
                assert_eq!(ours.pending(), 0);
            };
            let receive = async {
                let (mut heard, mut pings) = (Vec::new(), 0);
                loop {
                    match theirs.next().await.unwrap().unwrap() {
                        tungstenite::Message::Ping(payload) => {
                            assert_eq!((&payload[..], heard.len()), (&b"alive"[..], split));
                            pings += 1;
                        }
                        tungstenite::Message::Close(Some(frame)) => {
                            assert_eq!(u16::from(frame.code), 1012);
                            assert_eq!(frame.reason.as_str(), "service restart");
                            break;
                        }
                        message => heard.push(message),
                    }
                }
                assert_eq!(pings, 1);
                heard
            };
            let ((), heard) = tokio::join!(send, receive);
            assert!(heard == messages.iter().map(to_peer).collect::<Vec<_>>());
        });
    }

    #[test]
    fn what_an_independent_peer_says_is_heard(
        Messages(messages) in messages(), role in role(), pipe in 1_usize..100_000, pieces in 1_usize..5,
    ) {
        run(async {
            let (ours, theirs) = duplex(pipe);
            let (mut ours, mut theirs) = (socket(ours, role), peer(theirs, role).await);
            let send = async {
                for message in &messages {
                    let size = message.payload.len().div_ceil(pieces).max(1);
                    let mut parts: Vec<_> = message.payload.chunks(size).collect();
                    if parts.is_empty() {
                        parts.push(&[]);
                    }
                    let last = parts.len() - 1;
                    for (n, part) in parts.into_iter().enumerate() {
                        let data = match (n, message.kind) {
                            (0, Kind::Text) => Data::Text,
                            (0, Kind::Binary) => Data::Binary,
                            _ => Data::Continue,
                        };
                        let frame = Frame::message(part.to_vec(), OpCode::Data(data), n == last);
                        theirs.feed(tungstenite::Message::Frame(frame)).await.unwrap();
                        if n != last {
                            theirs.feed(tungstenite::Message::Ping(Bytes::new())).await.unwrap();
                        }
                    }
                }
                theirs.flush().await.unwrap();
            };
            let ((), heard) = tokio::join!(send, received(&mut ours, messages.len()));
            assert!(heard == messages);
            assert_eq!(ours.rest.capacity(), 0, "an idle socket keeps no buffer");
        });
    }

    #[test]
    fn both_ends_understand_each_other_compressed_or_not(
        Messages(messages) in messages(), sender in role(), pipe in 1_usize..100_000, deflate: bool,
    ) {
        run(async {
            let receiver = if sender == Role::Server { Role::Client } else { Role::Server };
            let (from, to) = duplex(pipe);
            let mut from = Socket::new(from, sender, options(deflate), Bytes::new());
            let mut to = Socket::new(to, receiver, options(deflate), Bytes::new());
            from.queue(&batch_of(&messages));
            let (sent, heard) = tokio::join!(from.flush(), received(&mut to, messages.len()));
            sent.unwrap();
            assert!(heard == messages);
        });
    }

    #[test]
    fn no_input_makes_the_decoder_panic_or_run_away(
        noise in prop::collection::vec(any::<u8>(), 0..300), role in role(), deflate: bool,
    ) {
        run(async {
            let mut socket = Socket::new(&noise[..], role, options(deflate), Bytes::new());
            let mut last = None;
            loop {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                match socket.poll_recv(&mut cx) {
                    Poll::Ready(None) => break,
                    Poll::Ready(Some(Err(error))) => {
                        assert!(last.is_none(), "one fault at most");
                        last = Some(error);
                    }
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Pending => panic!("a slice is always ready"),
                }
            }
        });
    }
}

#[test]
fn bytes_that_came_with_the_handshake_are_read_first() {
    run(async {
        let (ours, mut theirs) = duplex(1024);
        let leftover = Bytes::from_static(b"\x81\x03one\x89\x00\x81\x05th");
        let mut ours = Socket::new(ours, Role::Client, options(false), leftover);
        assert_eq!(received(&mut ours, 1).await, [Message::text("one")]);
        assert!(matches!(ours.recv().await, Some(Ok(Incoming::Ping(_)))));
        theirs.write_all(b"ree").await.unwrap();
        assert_eq!(received(&mut ours, 1).await, [Message::text("three")]);
        assert_eq!(ours.rest.capacity(), 0);
    });
}

#[test]
fn after_a_close_only_the_end_comes() {
    run(async {
        let (ours, mut theirs) = duplex(1024);
        let mut ours = socket(ours, Role::Client);
        theirs.write_all(b"\x81\x02hi\x88\x02\x03\xe8\x81\x02no").await.unwrap();
        theirs.write_all(b"and noise").await.unwrap();
        drop(theirs);
        assert_eq!(received(&mut ours, 1).await, [Message::text("hi")]);
        let expected = CloseFrame { code: 1000, reason: String::new() };
        match ours.recv().await {
            Some(Ok(Incoming::Close(frame))) => assert_eq!(frame, Some(expected)),
            other => panic!("{other:?}"),
        }
        assert!(ours.recv().await.is_none());
    });
}

#[test]
fn an_end_without_a_close_is_none_and_a_fault_has_its_code() {
    run(async {
        let (ours, mut theirs) = duplex(1024);
        let mut ours = socket(ours, Role::Client);
        theirs.write_all(b"\x81\x05cut").await.unwrap();
        drop(theirs);
        assert!(ours.recv().await.is_none());

        let (ours, mut theirs) = duplex(1024);
        let mut ours = socket(ours, Role::Client);
        theirs.write_all(b"\x81\x01a\x81\x01\xff\x81\x01b").await.unwrap();
        assert_eq!(received(&mut ours, 1).await, [Message::text("a")]);
        let fault = ours.recv().await;
        assert!(matches!(fault, Some(Err(SocketError::Protocol { close: 1007, .. }))), "{fault:?}");
        drop(theirs);
        assert!(ours.recv().await.is_none());
    });
}

#[test]
fn a_receive_that_is_dropped_loses_nothing() {
    run(async {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut ours = socket(ours, Role::Client);
        let mut heard = Vec::new();
        let payload = vec![b'p'; 6000];
        let wire = batch_of(&vec![Message::binary(payload.clone()); 3]).into_bytes();
        for piece in wire.chunks(1500) {
            theirs.write_all(piece).await.unwrap();
            // Polled until it waits, then dropped in mid-frame.
            while let Poll::Ready(next) = futures_util::poll!(std::pin::pin!(ours.recv())) {
                match next {
                    Some(Ok(Incoming::Messages(batch))) => heard.extend(batch.messages()),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(heard, vec![Message::binary(payload); 3]);
    });
}

#[test]
fn a_flush_that_is_dropped_goes_on_where_it_was() {
    for role in [Role::Server, Role::Client] {
        run(async move {
            let (from, to) = duplex(700);
            let other = if role == Role::Server { Role::Client } else { Role::Server };
            let (mut from, mut to) = (socket(from, role), socket(to, other));
            let messages = vec![Message::binary(vec![9; 100_000]), Message::text("end")];
            from.queue(&batch_of(&messages));
            let mut heard = Vec::new();
            while heard.len() < 2 {
                let _ = futures_util::poll!(std::pin::pin!(from.flush()));
                while let Poll::Ready(next) = futures_util::poll!(std::pin::pin!(to.recv())) {
                    match next {
                        Some(Ok(Incoming::Messages(batch))) => heard.extend(batch.messages()),
                        other => panic!("{other:?}"),
                    }
                }
                tokio::task::yield_now().await;
            }
            assert!(heard == messages);
            assert_eq!(from.pending(), 0);
        });
    }
}

#[test]
fn a_close_is_cut_at_a_character_and_needs_a_sendable_code() {
    run(async {
        let (ours, mut theirs) = duplex(1024);
        let mut ours = socket(ours, Role::Server);
        ours.queue_close(1011, &"é".repeat(100));
        ours.flush().await.unwrap();
        let mut frame = [0; 126];
        theirs.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[..4], [0x88, 124, 0x03, 0xF3]);

        let (ours, mut theirs) = duplex(1024);
        let mut ours = socket(ours, Role::Server);
        ours.queue_close(1005, "never sent");
        ours.shutdown().await.unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [0x88, 0]);
    });
}

/// A stream that counts the calls that write to it, and takes all.
#[derive(Default)]
struct Sink {
    calls: usize,
    bytes: Vec<u8>,
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.calls += 1;
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.calls += 1;
        for slice in slices {
            self.bytes.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn what_is_queued_goes_out_in_one_write_and_each_mask_is_fresh() {
    run(async {
        for role in [Role::Server, Role::Client] {
            let mut ours = socket(Sink::default(), role);
            for n in 0..32_u8 {
                ours.queue(&Batch::one(&Message::binary(vec![n; 100])));
            }
            assert_eq!(ours.pending(), 32 * 102);
            ours.flush().await.unwrap();
            assert_eq!(ours.get_ref().calls, 1);
            let bytes = &ours.get_ref().bytes;
            if role == Role::Client {
                let keys: std::collections::HashSet<_> =
                    bytes.chunks(106).map(|frame| &frame[2..6]).collect();
                assert!(keys.len() > 30);
            } else {
                assert_eq!(bytes.len(), 32 * 102);
            }
        }
    });
}

#[test]
fn a_socket_is_small() {
    let size = size_of::<Socket<TcpStream>>();
    println!("Socket<TcpStream>: {size} bytes");
    assert!(size <= 400, "{size}");
}

/// The beginning of a masked binary frame of so many bytes, and `sent` of them.
fn beginning(bytes: usize, sent: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0xff];
    frame.extend((bytes as u64).to_be_bytes());
    frame.resize(frame.len() + 4 + sent, 0);
    frame
}

#[test]
fn what_has_not_ended_is_held_within_a_budget_of_all_and_given_back_at_its_end() {
    run(async {
        let budget = crate::wire::Budget::new(300 << 10);
        let open = || {
            let (near, far) = duplex(1 << 20);
            (socket(near, Role::Server).within(budget.share()), far)
        };
        let ((mut one, mut to_one), (mut two, mut to_two)) = (open(), open());
        let large = 256 << 10;
        to_one.write_all(&beginning(large, 200 << 10)).await.unwrap();
        assert!(futures_util::poll!(Box::pin(one.recv())).is_pending());
        to_two.write_all(&beginning(large, large - 1)).await.unwrap();
        let refused = loop {
            match futures_util::poll!(Box::pin(two.recv())) {
                Poll::Ready(refused) => break refused,
                Poll::Pending => tokio::task::yield_now().await,
            }
        };
        assert!(matches!(refused, Some(Err(SocketError::Protocol { close: 1013, .. }))));
        drop(two);
        to_one.write_all(&vec![0; 56 << 10]).await.unwrap();
        assert_eq!(received(&mut one, 1).await[0].payload.len(), large);
        let (mut three, mut to_three) = open();
        to_three.write_all(&beginning(large, large)).await.unwrap();
        assert_eq!(received(&mut three, 1).await[0].payload.len(), large);
    });
}
