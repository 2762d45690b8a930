use bytes::BufMut;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::*;

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A frame as a client sends it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_header(&mut out, first, payload.len());
    out[1] |= 0x80;
    out.put_slice(&KEY);
    let start = out.len();
    out.put_slice(payload);
    for (byte, key) in out[start..].iter_mut().zip(KEY.iter().cycle()) {
        *byte ^= key;
    }
    out.to_vec()
}

/// A frame as a server sends it.
fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_header(&mut out, first, payload.len());
    out.put_slice(payload);
    out.to_vec()
}

/// Everything that `input` comes to, up to the first fault.
fn decode(decoder: &mut Decoder, input: &[u8]) -> (Vec<Incoming>, Option<u16>) {
    let (mut at, mut all) = (0, Vec::new());
    loop {
        match decoder.decode(&input[at..]) {
            Ok(Step { consumed, incoming: Some(incoming) }) => {
                at += consumed;
                all.push(incoming);
            }
            Ok(_) => return (all, None),
            Err(fault) => return (all, Some(fault.close)),
        }
    }
}

fn server() -> Decoder {
    Decoder::new(Role::Server, 1 << 20, false)
}

fn fault_of(input: &[u8]) -> Option<u16> {
    let (all, fault) = decode(&mut server(), input);
    assert_eq!(all, [], "{input:02x?}");
    fault
}

fn payloads(incoming: &Incoming) -> Vec<Bytes> {
    match incoming {
        Incoming::Messages(batch) => batch.messages().map(|message| message.payload).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broken_frame_is_a_protocol_error() {
    for first in [0x83, 0x87, 0x8B, 0x8F, 0xC1, 0xA1, 0x91, 0xC9, 0x09, 0x08, 0x80, 0x00] {
        assert_eq!(fault_of(&masked(first, b"x")), Some(1002), "{first:02x}");
    }
    assert_eq!(fault_of(&masked(0x89, &[0; 126])), Some(1002), "control frame too long");
    assert_eq!(fault_of(&plain(0x81, b"x")), Some(1002), "unmasked");
    assert_eq!(fault_of(&[0x82, 0xFE, 0, 125]), Some(1002), "16 bits for 125");
    assert_eq!(fault_of(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), Some(1002));
    assert_eq!(fault_of(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]), Some(1002), "63 bits");
    let mut client = Decoder::new(Role::Client, 1 << 20, false);
    assert_eq!(decode(&mut client, &masked(0x81, b"x")).1, Some(1002), "masked by a server");
    let nested = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
    assert_eq!(fault_of(&nested), Some(1002), "a message within a message");
}

#[test]
fn a_size_is_refused_by_its_header_alone() {
    let mut header = vec![0x82, 0xFF];
    header.extend_from_slice(&((1_u64 << 20) + 1).to_be_bytes());
    header.extend_from_slice(&KEY);
    assert_eq!(fault_of(&header), Some(1009));
    let huge = [&[0x82, 0xFF][..], &(u64::MAX >> 1).to_be_bytes(), &KEY].concat();
    assert_eq!(fault_of(&huge), Some(1009));

    let mut small = Decoder::new(Role::Server, 10, false);
    let fragments = [masked(0x02, &[0; 6]), masked(0x80, &[0; 5])].concat();
    assert_eq!(decode(&mut small, &fragments), (vec![], Some(1009)));
    let mut small = Decoder::new(Role::Server, 10, false);
    assert_eq!(decode(&mut small, &masked(0x82, &[0; 10])).1, None);
}

#[test]
fn a_close_is_read_and_checked() {
    let close = |payload: &[u8]| decode(&mut server(), &masked(0x88, payload));
    assert_eq!(close(b""), (vec![Incoming::Close(None)], None));
    let expected = CloseFrame { code: 1012, reason: "service restart".into() };
    let payload = [&1012_u16.to_be_bytes()[..], b"service restart"].concat();
    assert_eq!(close(&payload), (vec![Incoming::Close(Some(expected))], None));
    assert_eq!(close(&[3]), (vec![], Some(1002)));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        assert_eq!(close(&code.to_be_bytes()), (vec![], Some(1002)), "{code}");
    }
    for code in [1000_u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999] {
        assert_eq!(close(&code.to_be_bytes()).1, None, "{code}");
    }
    assert_eq!(close(&[0x03, 0xE8, 0xFF]), (vec![], Some(1002)));
}

#[test]
fn text_that_is_not_utf8_is_refused_as_soon_as_a_fragment_shows_it() {
    assert_eq!(fault_of(&masked(0x81, b"\xC3")), Some(1007));
    assert_eq!(fault_of(&masked(0x81, b"\xED\xA0\x80")), Some(1007));
    assert_eq!(fault_of(&masked(0x01, b"ok \xED\xA0\x80")), Some(1007), "before the last one");
    let cut = [masked(0x01, b"\xC3"), masked(0x80, b"")].concat();
    assert_eq!(fault_of(&cut), Some(1007));
    let mut client = Decoder::new(Role::Client, 1 << 20, false);
    assert_eq!(decode(&mut client, &plain(0x81, b"\xFF")).1, Some(1007));

    let text = "κόσμε 𝄞".as_bytes();
    let mut frames = masked(0x01, b"");
    for byte in text {
        frames.extend(masked(0x00, &[*byte]));
    }
    frames.extend(masked(0x80, b""));
    let (all, fault) = decode(&mut server(), &frames);
    assert_eq!((payloads(&all[0]), fault), (vec![Bytes::from_static(text)], None));
    assert_eq!(decode(&mut server(), &masked(0x82, b"\xFF")).1, None, "binary may be anything");
}

#[test]
fn messages_ahead_of_a_fault_come_out_first() {
    for (bad, close) in [(masked(0x83, b""), 1002), (masked(0x81, b"\xFF"), 1007)] {
        let frames = [masked(0x81, b"one"), masked(0x82, b"two"), bad, masked(0x81, b"no")];
        let (all, fault) = decode(&mut server(), &frames.concat());
        assert_eq!(all.len(), 1);
        assert_eq!(payloads(&all[0]), ["one", "two"]);
        assert_eq!(fault, Some(close));
    }
}

#[test]
fn control_frames_pass_between_fragments_in_their_order() {
    let frames = [
        masked(0x81, b"first"),
        masked(0x01, b"sec"),
        masked(0x89, b"ping"),
        masked(0x00, b"o"),
        masked(0x8A, b"pong"),
        masked(0x80, b"nd"),
        masked(0x82, b"third"),
    ];
    let (all, fault) = decode(&mut server(), &frames.concat());
    assert_eq!(fault, None);
    assert_eq!(payloads(&all[0]), ["first"]);
    assert_eq!(all[1], Incoming::Ping(Bytes::from_static(b"ping")));
    assert_eq!(all[2], Incoming::Pong(Bytes::from_static(b"pong")));
    assert_eq!(payloads(&all[3]), ["second", "third"]);
    assert_eq!(all.len(), 4);
}

#[test]
fn a_batch_is_canonical_of_exact_size_and_bounded() {
    let frames: Vec<u8> = (0..100).flat_map(|_| masked(0x82, &[7; 1000])).collect();
    let (all, _) = decode(&mut server(), &frames);
    let Incoming::Messages(first) = &all[0] else { panic!("{all:?}") };
    assert_eq!((all.len(), first.len(), first.weight()), (2, 65, 65 * 1004));
    assert_eq!(Batch::from_wire(first.bytes().clone()).as_ref(), Some(first));

    let large = [masked(0x82, b"a"), masked(0x82, &vec![0; 100_000]), masked(0x82, b"b")].concat();
    let (all, _) = decode(&mut server(), &large);
    assert_eq!(all.iter().map(|i| payloads(i).len()).collect::<Vec<_>>(), [1, 1, 1]);

    let run: Vec<u8> = (0..32).flat_map(|_| plain(0x81, &[b'x'; 100])).collect();
    let (all, _) = decode(&mut Decoder::new(Role::Client, 1 << 20, false), &run);
    let Incoming::Messages(verbatim) = &all[0] else { panic!("{all:?}") };
    assert_eq!(verbatim.bytes(), &run);
}

#[test]
fn compressed_messages_keep_to_the_batch_and_the_limit() {
    let packed =
        |bytes: usize| deflate::deflate(&vec![b'z'; bytes], |out| masked(0xC1, out.unwrap()));
    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    let frames = [packed(40_000), masked(0x81, b"plain"), packed(40_000)].concat();
    let (all, fault) = decode(&mut decoder, &frames);
    let sizes: Vec<Vec<usize>> =
        all.iter().map(|i| payloads(i).iter().map(Bytes::len).collect()).collect();
    assert_eq!((sizes, fault), (vec![vec![40_000, 5], vec![40_000]], None));
    assert_eq!(decode(&mut decoder, &packed(50_001)), (vec![], Some(1009)));
    // Half of it noise, to be long on the wire: inflated once, in a batch of its own.
    let words = |n: u64| [xxh3_64_with_seed(b"", n), 0].map(u64::to_le_bytes);
    let noise = (0..250).flat_map(words).flatten().collect::<Vec<u8>>();
    let noise = deflate::deflate(&noise, |out| masked(0xC2, out.unwrap()));
    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    let (all, _) = decode(&mut decoder, &[masked(0x81, b"plain"), noise].concat());
    assert_eq!(all.iter().map(|i| payloads(i).len()).collect::<Vec<_>>(), [1, 1]);

    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    let whole = deflate::deflate(&[b'y'; 5000], |out| out.unwrap().to_vec());
    let (head, tail) = whole.split_at(3);
    let frames = [masked(0x42, head), masked(0x89, b""), masked(0x80, tail)].concat();
    let (all, fault) = decode(&mut decoder, &frames);
    assert_eq!((payloads(&all[1]), fault), (vec![Bytes::from_static(&[b'y'; 5000])], None));
    let marked = [masked(0x42, head), masked(0xC0, tail)].concat();
    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    assert_eq!(decode(&mut decoder, &marked).1, Some(1002), "only the first fragment is marked");
    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    assert_eq!(decode(&mut decoder, &masked(0xC1, &[0xFF; 9])).1, Some(1007));
    let not_text = deflate::deflate(&[0xFF; 80], |out| masked(0xC1, out.unwrap()));
    let mut decoder = Decoder::new(Role::Server, 50_000, true);
    assert_eq!(decode(&mut decoder, &not_text).1, Some(1007));
}
