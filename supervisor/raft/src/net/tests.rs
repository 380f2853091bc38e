//! Real TLS on loopback: who gets in, and what everyone else costs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::links::Links;
use super::*;
use crate::tests::{eventually, port, settings};

const SECRET: &[u8] = b"0123456789abcdef";

struct Server {
    net: Arc<Net>,
    arrived: mpsc::Receiver<Incoming>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Node `me` accepts connections.
fn server(settings: &Arc<Settings>, secret: &[u8], me: u8) -> Server {
    let net = Arc::new(Net::new(secret, settings.clone(), NodeId(me)));
    let (arrive, arrived) = mpsc::channel(64);
    let serve: Serve = Arc::new(move |incoming| drop(arrive.try_send(incoming)));
    let task = tokio::spawn(net.clone().accept(net.listener().unwrap(), serve));
    Server { net, arrived, task }
}

fn client(settings: &Arc<Settings>, secret: &[u8], me: u8) -> Net {
    Net::new(secret, settings.clone(), NodeId(me))
}

#[tokio::test(flavor = "current_thread")]
async fn nodes_of_a_set_prove_to_each_other_who_they_are_and_what_they_speak() {
    let settings = settings(&["a", "b", "c"], port());
    let mut a = server(&settings, SECRET, 0);
    for (me, alpn) in [(1, Alpn::Raft), (2, Alpn::Set), (1, Alpn::Blocks)] {
        let mut there = client(&settings, SECRET, me).connect(NodeId(0), alpn).await.unwrap();
        let mut here = a.arrived.recv().await.unwrap();
        assert_eq!((here.from, here.alpn), (NodeId(me), alpn));
        write_frame(&mut there, &"hello").await.unwrap();
        let frame = read_frame(&mut here.stream).await.unwrap().unwrap();
        assert_eq!(decode::<String>(&frame).unwrap(), "hello");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_secret_another_name_and_another_set_are_refused_by_both_ends() {
    let settings = settings(&["a", "b", "c"], port());
    let mut a = server(&settings, SECRET, 0);
    let refused = async |net: Net| {
        // With TLS 1.3 the client may hear of the refusal only when it reads.
        if let Ok(mut stream) = net.connect(NodeId(0), Alpn::Set).await {
            assert!(!matches!(read_frame(&mut stream).await, Ok(Some(_))));
        }
    };
    refused(client(&settings, b"another secret, as long", 1)).await;
    let mut other = (*settings).clone();
    other.set.name = "other".to_owned();
    refused(client(&Arc::new(other), SECRET, 1)).await;
    // Node c's key, from node b's address.
    let mut swapped = (*settings).clone();
    (swapped.nodes[1].address, swapped.nodes[2].address) = (settings.nodes[2].address, settings.nodes[1].address);
    refused(client(&Arc::new(swapped), SECRET, 2)).await;
    // A node that was renamed here, but not there.
    let mut renamed = (*settings).clone();
    renamed.nodes[1].name = "z".to_owned();
    refused(client(&Arc::new(renamed), SECRET, 1)).await;
    // Whoever connects to a expects a's key, not b's.
    let mut moved = (*settings).clone();
    (moved.nodes[2].name, moved.nodes[0].name) = ("a".to_owned(), "c".to_owned());
    let error = client(&Arc::new(moved), SECRET, 1).connect(NodeId(0), Alpn::Set).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(a.arrived.try_recv().is_err(), "nobody got in");
}

#[tokio::test(flavor = "current_thread")]
async fn garbage_and_half_open_connections_are_bounded_and_keep_no_other_node_out() {
    let settings = settings(&["a", "b", "c"], port());
    let mut a = server(&settings, SECRET, 0);
    let to = SocketAddr::new(settings.nodes[0].address, settings.set.peer_port);
    let from = async |address: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(address), 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    };
    let IpAddr::V4(b) = settings.nodes[1].address else { panic!() };
    // A stranger is closed at once.
    let mut stranger = from([127, 9, 9, 9]).await;
    assert_eq!(stranger.read(&mut [0; 8]).await.unwrap_or(0), 0);
    // Garbage is refused.
    let mut garbage = from(b.octets()).await;
    garbage.write_all(&[0x5a; 4096]).await.unwrap();
    let mut rest = Vec::new();
    let _ = garbage.read_to_end(&mut rest).await;
    assert!(rest.len() < 100, "a TLS alert at most");
    // Half-open ones take the places of their own address only, and those above are closed at once.
    eventually("the garbage's place is free", async || a.net.places[1].half_open.available_permits() == HALF_OPEN)
        .await;
    let mut half_open = Vec::new();
    for _ in 0..HALF_OPEN {
        half_open.push(from(b.octets()).await);
    }
    eventually("all places are taken", async || a.net.places[1].half_open.available_permits() == 0).await;
    let mut above = from(b.octets()).await;
    assert_eq!(above.read(&mut [0; 8]).await.unwrap_or(0), 0);
    client(&settings, SECRET, 2).connect(NodeId(0), Alpn::Set).await.unwrap();
    assert_eq!(a.arrived.recv().await.unwrap().from, NodeId(2));
    drop(half_open);
    eventually("places are given back", async || a.net.places[1].half_open.available_permits() == HALF_OPEN).await;
    client(&settings, SECRET, 1).connect(NodeId(0), Alpn::Set).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_has_so_many_connections_and_no_more() {
    let settings = settings(&["a", "b"], port());
    let mut a = server(&settings, SECRET, 0);
    let b = client(&settings, SECRET, 1);
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push((b.connect(NodeId(0), Alpn::Set).await.unwrap(), a.arrived.recv().await.unwrap()));
    }
    if let Ok(mut stream) = b.connect(NodeId(0), Alpn::Set).await {
        assert!(!matches!(read_frame(&mut stream).await, Ok(Some(_))));
    }
    assert!(a.arrived.try_recv().is_err());
    open.pop();
    let _open = b.connect(NodeId(0), Alpn::Set).await.unwrap();
    assert!(a.arrived.recv().await.is_some());
}

#[tokio::test(flavor = "current_thread")]
async fn a_frame_that_is_too_long_or_cut_is_refused_and_one_of_a_later_version_is_read() {
    let mut announced = &((MAX_FRAME as u32 + 1).to_be_bytes())[..];
    assert!(read_frame(&mut announced).await.unwrap_err().to_string().contains("is announced"));
    let mut cut = &b"\x00\x00\x00\x05abc"[..];
    assert_eq!(read_frame(&mut cut).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(read_frame(&mut &b""[..]).await.unwrap(), None);
    let long = "x".repeat(MAX_FRAME);
    assert!(write_frame(&mut Vec::new(), &long).await.is_err());
    let member: crate::types::Member = decode(br#"{"name":"a","zone":"new","x":[1]}"#).unwrap();
    assert_eq!(member.name, "a");
}

#[tokio::test(flavor = "current_thread")]
async fn calls_share_a_connection_and_outlive_its_end() {
    let settings = settings(&["a", "b"], port());
    let Server { net: _net, arrived: _, task } = &mut server(&settings, SECRET, 0);
    task.abort();
    let (seen, connections) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicUsize::new(0)));
    let net = Arc::new(Net::new(SECRET, settings.clone(), NodeId(0)));
    let serve: Serve = Arc::new({
        let (seen, connections) = (seen.clone(), connections.clone());
        move |mut incoming: Incoming| {
            connections.fetch_add(1, Ordering::Relaxed);
            let seen = seen.clone();
            tokio::spawn(async move {
                // Five calls, then the connection ends without a word.
                for _ in 0..5 {
                    let Ok(Some(frame)) = read_frame(&mut incoming.stream).await else { return };
                    let number: u32 = decode(&frame).unwrap();
                    seen.lock().unwrap().insert(number);
                    write_frame(&mut incoming.stream, &(number * 2)).await.unwrap();
                }
            });
        }
    });
    let mut listener = None;
    eventually("the port is free", async || {
        listener = net.listener().ok();
        listener.is_some()
    })
    .await;
    let accepting = tokio::spawn(net.clone().accept(listener.unwrap(), serve));
    let links = Links::new(Arc::new(client(&settings, SECRET, 1)));
    for number in 0..20 {
        let answer: u32 = links.call(NodeId(0), Alpn::Set, &number, Duration::from_secs(10)).await.unwrap();
        assert_eq!(answer, number * 2);
    }
    assert_eq!((seen.lock().unwrap().len(), connections.load(Ordering::Relaxed)), (20, 4));
    accepting.abort();
}
