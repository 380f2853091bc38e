//! The shell with a real HAProxy.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::testing::{PATIENCE, Proxy, get, inside, instance, plain_settings, settings, shell, until};
use super::*;

#[tokio::test]
async fn haproxy_itself_accepts_what_is_rendered() {
    let Some(root) = inside("haproxy::tests::haproxy_itself_accepts_what_is_rendered") else {
        return;
    };
    fs::write(root.join("run/secure.pem"), made("test")).unwrap();
    let mut settings = settings();
    settings.services[1].tls_certificate = Some("/run/secure.pem".to_owned());
    settings.services.push(settings.services[0].clone());
    let odd = settings.services.last_mut().unwrap();
    (odd.name, odd.port) = ("odd".to_owned(), 81);
    odd.health = trilith_core::config::Health::Get { path: "/a'b#$x%20\"".to_owned() };
    settings.nodes[2].address = "fd77::13".parse().unwrap();
    let (handle, _events) = start(&root, settings).await;
    assert_eq!(handle.problem(), None);
}

#[tokio::test]
async fn states_and_configuration_hold_through_restart_reload_and_refusal() {
    let Some(root) = inside("haproxy::tests::states_and_configuration_hold_through_restart_reload_and_refusal") else {
        return;
    };
    for (name, address) in [("a", "10.77.0.11"), ("b", "10.77.0.12"), ("c", "10.77.0.13")] {
        instance(name, &format!("{address}:8080")).await;
    }
    let echo = TcpListener::bind("10.77.0.11:9001").await.unwrap();
    let (handle, mut events) = start(&root, plain_settings()).await;

    // Commands are taken while HAProxy does not run, and are in force with its first request.
    order(&handle, &mut events, 1, BackendState::Down).await;
    let proxy = Proxy::start(&root).await;
    serve("ac").await;
    handle.started();
    let began = Instant::now();
    order(&handle, &mut events, 1, BackendState::Ready).await;
    println!("a state is set in {:?}", began.elapsed());
    serve("abc").await;
    order(&handle, &mut events, 0, BackendState::Drain).await;
    shows(&handle, ["DRAIN", "UP", "UP"]).await;
    serve("bc").await;
    order(&handle, &mut events, 0, BackendState::Ready).await;

    // Killed, started again by someone else: once more as wanted.
    proxy.kill().await;
    order(&handle, &mut events, 2, BackendState::Drain).await;
    let proxy = Proxy::start(&root).await;
    serve("ab").await;
    handle.started();
    order(&handle, &mut events, 0, BackendState::Ready).await;
    shows(&handle, ["UP", "UP", "DRAIN"]).await;

    // Another configuration, while a connection lives on through the reload. The new shell knows of no drain yet.
    let mut through = TcpStream::connect("10.77.0.10:9000").await.unwrap();
    through.write_all(b"before").await.unwrap();
    let mut served_by_a = hears(&echo, b"before").await;
    let mut changed = plain_settings();
    changed.services[0].port = 8000;
    let (handle, mut events) = start(&root, changed.clone()).await;
    assert_eq!(handle.problem(), None);
    until("the new port is open", async || get(8000).await.is_some()).await;
    // By the worker that is replaced, which is told so when the new one serves.
    until("the old port is closed", async || get(80).await.is_none()).await;
    shows(&handle, ["UP", "UP", "UP"]).await;
    through.write_all(b" after").await.unwrap();
    let mut text = [0; 6];
    served_by_a.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b" after");

    // The same again needs no reload: a worker that is kept has kept its connections' count.
    let before = handle.flows().await.unwrap().total;
    let (handle_again, _) = start(&root, changed.clone()).await;
    assert!(before > 0 && handle_again.flows().await.unwrap().total >= before);

    // A configuration that HAProxy refuses changes nothing, leaves nothing, and says why.
    let mut broken = changed;
    fs::write(root.join("run/strange.pem"), strange(&made("one"), &made("other"))).unwrap();
    broken.services[0].tls_certificate = Some("/run/strange.pem".to_owned());
    let (handle_broken, _) = start(&root, broken.clone()).await;
    let problem = handle_broken.problem().unwrap();
    assert!(problem.contains("/run/trilith/tls/portal-"), "{problem}");
    assert_eq!(copies(&root), Vec::<String>::new());
    fs::write(root.join("run/strange.pem"), "nonsense").unwrap();
    let (handle_broken, _) = start(&root, broken).await;
    let problem = handle_broken.problem().unwrap();
    assert!(problem.contains("/run/strange.pem: it holds no certificate"), "{problem}");
    until("it serves", async || get(8000).await.is_some()).await;

    // A HAProxy that hangs fails the command in time, and the next one finds it awake.
    proxy.signal("STOP");
    handle.commands.send(Command::Backend { node: NodeId(1), state: BackendState::Down }).await.unwrap();
    let Some(Event::Done { result: Err(why), .. }) = events.recv().await else {
        panic!("a failure is an event");
    };
    assert!(why.contains("did not answer"), "{why}");
    // Until it goes on, that is what is wrong with it, and no longer.
    handle.started();
    until("it is late", async || handle.problem().is_some_and(|why| why.contains("did not answer"))).await;
    proxy.signal("CONT");
    until("it was only late", async || handle.problem().is_none()).await;
    order(&handle, &mut events, 1, BackendState::Down).await;
    shows(&handle, ["UP", "MAINT", "UP"]).await;

    // What a node carries that is down goes on, and ends when the node is gone.
    let mut carried = TcpStream::connect("10.77.0.10:9000").await.unwrap();
    carried.write_all(b"first ").await.unwrap();
    let mut served = hears(&echo, b"first ").await;
    order(&handle, &mut events, 0, BackendState::Down).await;
    carried.write_all(b"still ").await.unwrap();
    timeout(PATIENCE, served.read_exact(&mut text)).await.expect("it is carried").unwrap();
    assert_eq!(text, *b"still ");
    order(&handle, &mut events, 0, BackendState::Gone).await;
    let ended = timeout(PATIENCE, carried.read(&mut text)).await.expect("the end of the connection");
    assert!(matches!(ended, Ok(0) | Err(_)));

    // One that ends with its last connection is as good as gone: it takes no commands, and what starts next reads them.
    order(&handle, &mut events, 0, BackendState::Ready).await;
    shows(&handle, ["UP", "MAINT", "UP"]).await;
    let mut last = TcpStream::connect("10.77.0.10:9000").await.unwrap();
    last.write_all(b"last 1").await.unwrap();
    let mut served = hears(&echo, b"last 1").await;
    proxy.signal("USR1");
    until("the port is closed", async || get(8000).await.is_none()).await;
    order(&handle, &mut events, 1, BackendState::Ready).await;

    // Until it is needed after all: then it serves again, and what it carried has not noticed.
    go_on_in(&root.join(&crate::paths::HAPROXY_DIR[1..])).await.unwrap();
    assert!(get(8000).await.is_some());
    shows(&handle, ["UP", "UP", "UP"]).await;
    last.write_all(b"last 2").await.unwrap();
    served.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"last 2");
}

#[tokio::test]
async fn a_haproxy_that_takes_long_to_start_learns_what_has_changed_meanwhile() {
    let Some(root) = inside("haproxy::tests::a_haproxy_that_takes_long_to_start_learns_what_has_changed_meanwhile")
    else {
        return;
    };
    for (name, address) in [("a", "10.77.0.11"), ("b", "10.77.0.12"), ("c", "10.77.0.13")] {
        instance(name, &format!("{address}:8080")).await;
    }
    let (handle, mut events) = start(&root, plain_settings()).await;
    order(&handle, &mut events, 1, BackendState::Down).await;
    let file = root.join("run/trilith/haproxy.cfg");
    let read = fs::read_to_string(&file).unwrap();
    // systemd says that it runs; it has read that, and does not listen yet when it was waited for long enough.
    handle.started();
    order(&handle, &mut events, 1, BackendState::Ready).await;
    fs::write(&file, read).unwrap();
    let _proxy = Proxy::start(&root).await;
    until("it answers", async || handle.flows().await.is_ok()).await;
    shows(&handle, ["UP", "UP", "UP"]).await;
}

#[tokio::test]
async fn a_certificate_is_judged_then_stored_then_in_force() {
    let Some(root) = inside("haproxy::tests::a_certificate_is_judged_then_stored_then_in_force") else {
        return;
    };
    shell(&format!("mount --types tmpfs tmpfs {}/var/lib", root.display()));
    let path = format!("{}/secure.pem", crate::paths::CERTIFICATES);
    let stored = root.join(&path[1..]);
    let mut settings = settings();
    settings.services[1].tls_certificate = Some(path);
    let (handle, _events) = start(&root, settings.clone()).await;
    let problem = handle.problem().unwrap();
    assert!(problem.contains("service secure") && problem.contains("trilith service certificate secure"), "{problem}");

    let (first, second) = (made("first"), made("second"));
    let install = async |service: &str, text: &str| handle.install(service.to_owned(), Pem::new(text.to_owned())).await;
    let strange = strange(&first, &second);
    for (service, text) in [("secure", "nonsense"), ("secure", &strange), ("../../secure", &first), ("", &first)] {
        let why = install(service, text).await.unwrap_err();
        assert!(!stored.exists() && !why.is_empty() && !why.contains("PRIVATE KEY"), "{why}");
    }
    install("secure", &first).await.unwrap();
    assert_eq!(fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(handle.problem(), None);
    let _proxy = Proxy::start(&root).await;
    until("the first certificate", async || subject().contains("first")).await;

    let why = install("secure", &strange).await.unwrap_err();
    assert!(fs::read_to_string(&stored).unwrap() == first && subject().contains("first"), "{why}");
    install("secure", &second).await.unwrap();
    until("the second certificate", async || subject().contains("second")).await;
    let said = install("later", &first).await.unwrap();
    assert!(said.contains("for the configuration to name") && subject().contains("second"), "{said}");

    // Of one that came by another way, and that HAProxy refuses, no copy stays; that of the one in force does.
    let in_force = copies(&root);
    assert_eq!(in_force.len(), 1);
    fs::write(&stored, strange).unwrap();
    let (handle, _events) = start(&root, settings).await;
    let problem = handle.problem().unwrap();
    assert!(problem.contains("HAProxy refuses") && copies(&root) == in_force, "{problem}");
}

/// A certificate with the key of another one.
fn strange(certificate: &str, other: &str) -> String {
    let end_of_key = "-----END PRIVATE KEY-----\n";
    let key_of = |text: &str| text[..text.find(end_of_key).unwrap() + end_of_key.len()].to_owned();
    certificate.replace(&key_of(certificate), &key_of(other))
}

/// What lies where HAProxy may read it.
fn copies(root: &Path) -> Vec<String> {
    let folder = fs::read_dir(root.join(&crate::paths::TLS[1..])).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_certificate_s_end_is_known_and_one_that_has_ended_is_refused() {
    let Some(root) = inside("haproxy::tests::a_certificate_s_end_is_known_and_one_that_has_ended_is_refused") else {
        return;
    };
    shell(&format!("mount --types tmpfs tmpfs {}/var/lib", root.display()));
    let mut settings = settings();
    settings.services[1].tls_certificate = Some(format!("{}/secure.pem", crate::paths::CERTIFICATES));
    let (handle, _events) = start(&root, settings).await;
    let install = async |text: String| handle.install("secure".to_owned(), Pem::new(text)).await;
    install(made("first")).await.unwrap();
    assert_eq!(handle.ending(crate::utc::now()), Vec::<String>::new(), "no HAProxy has told");
    let _proxy = Proxy::start(&root).await;
    handle.started();
    until("HAProxy tells", async || !handle.ending(crate::utc::now()).is_empty()).await;
    let alarms = handle.ending(crate::utc::now());
    assert!(alarms.len() == 1 && alarms[0].starts_with("the certificate of service secure ends on "), "{alarms:?}");
    let said = install(made("second")).await.unwrap();
    assert!(said.contains("is in force for new connections, and holds until 2"), "{said}");

    let right = root.join(&crate::paths::CLOCK_IS_RIGHT[1..]);
    fs::create_dir_all(right.parent().unwrap()).unwrap();
    fs::write(&right, "").unwrap();
    install(made("third")).await.unwrap();
    until("the third certificate", async || subject().contains("third")).await;
    for _ in 0..2 {
        let why = install(ended()).await.unwrap_err();
        assert_eq!(why, "it ended on 2021-01-01 00:00:00 UTC: clients would refuse it");
    }
    assert!(subject().contains("third"));

    fs::remove_file(right).unwrap();
    let said = install(ended()).await.unwrap();
    assert!(said.ends_with("holds until 2021-01-01 00:00:00 UTC"), "a clock that may be wrong refuses nothing: {said}");
    let alarms = handle.ending(crate::utc::now());
    assert!(alarms[0].starts_with("the certificate of service secure ended on 2021-01-01 "), "{alarms:?}");
}

/// A certificate that has ended, with its key. (openssl-ca(1): `req` makes none.)
fn ended() -> String {
    let line = r"
        cd $(mktemp --directory) && touch index && echo 01 > serial &&
        printf '[ca]\ndefault_ca=c\n[c]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n' > conf &&
        printf '[p]\ncommonName=supplied\n' >> conf &&
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ended -keyout key -out request &&
        openssl ca -batch -config conf -selfsign -keyfile key -in request -notext \
            -startdate 20200101000000Z -enddate 20210101000000Z -out made && cat made key; rm --recursive $PWD";
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("PRIVATE KEY"), "{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A certificate of a day, made for this, with its key: none is worth keeping.
fn made(name: &str) -> String {
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", &format!("/CN={name}"), "-days", "1", "-keyout", "-", "-out", "-"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap()
}

/// Whose certificate the VIP shows, as openssl sees it.
fn subject() -> String {
    let line =
        "openssl s_client -connect 10.77.0.10:443 < /dev/null 2> /dev/null | openssl x509 -noout -subject 2> /dev/null";
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The connection on which those bytes come.
async fn hears(listener: &TcpListener, text: &[u8; 6]) -> TcpStream {
    let heard = async {
        loop {
            // Health checks connect as well, and say nothing.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = [0; 6];
            if stream.read_exact(&mut heard).await.is_ok() && heard == *text {
                return stream;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("a connection on which it comes")
}

async fn start(root: &Path, settings: Settings) -> (Handle, mpsc::Receiver<Event>) {
    let (events, received) = mpsc::channel(16);
    let program = vec!["chroot".to_owned(), root.display().to_string(), "/usr/sbin/haproxy".to_owned()];
    let installed = Installed::below(root.to_owned(), program);
    let handle = start_on(installed, Arc::new(settings), NodeId(0), events).await.unwrap();
    (handle, received)
}

async fn order(handle: &Handle, events: &mut mpsc::Receiver<Event>, node: u8, state: BackendState) {
    let node = NodeId(node);
    handle.commands.send(Command::Backend { node, state }).await.unwrap();
    let done = Event::Done { deed: Deed::Backend(node), result: Ok(()) };
    assert_eq!(events.recv().await, Some(done));
}

/// Waits until these nodes, each named by one letter, have all answered one of twelve requests. No other one ever may.
///
/// A health check that a busy machine answers late takes a node out for a moment.
async fn serve(nodes: &str) {
    until(&format!("{nodes} serve"), async || {
        let mut names = BTreeSet::new();
        for _ in 0..12 {
            names.extend(get(80).await);
        }
        let names = String::from_iter(names);
        assert!(names.chars().all(|name| nodes.contains(name)), "{names} serve, instead of {nodes}");
        names == nodes
    })
    .await;
}

/// Waits until these are HAProxy's words for the servers of the portal, without the `1/2` of one that is on trial.
async fn shows(handle: &Handle, words: [&str; 3]) {
    until(&format!("{words:?}"), async || {
        let Ok(flows) = handle.flows().await else { return false };
        let rows = flows.backends.iter().filter(|row| row.service == "portal");
        rows.map(|row| row.state.split(' ').next().unwrap_or_default()).eq(words)
    })
    .await;
}
