//! The shell with the real systemd of the image's root tree, under the restrictions of the supervisor's own unit.

use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Instant;

use trilith_core::command::BackendState;
use trilith_core::config::{NodeId, ServiceId};

use super::*;
use crate::haproxy::{self, testing};

const ABSENT: Unit = Unit::Service(ServiceId(0));
const BUS: Unit = Unit::Service(ServiceId(1));

#[test]
fn units_are_watched_started_and_killed_within_the_sandbox_of_the_supervisor() {
    if Path::new("/run/systemd/system").exists() {
        return inside();
    }
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let root = base.join("build/root");
    if !root.join("usr/lib/systemd/systemd").exists() {
        assert!(std::env::var_os("TRILITH_TEST_ALL").is_none(), "there is no root tree in build/root");
        return eprintln!("left out, because there is no root tree in build/root");
    }
    let out = std::env::temp_dir().join(format!("trilith-systemd-test-{}", std::process::id()));
    std::fs::create_dir(&out).unwrap();
    let supervisor = base.join("overlays/base/usr/lib/systemd/system/trilith.service");
    std::fs::write(out.join("test.service"), test_unit(&std::fs::read_to_string(supervisor).unwrap())).unwrap();
    let status = boot(&root, &base.join("overlays/base"), &out);
    let read = |name| std::fs::read_to_string(out.join(name)).unwrap_or_default();
    let (log, console) = (read("log"), read("console"));
    std::fs::remove_dir_all(&out).unwrap();
    println!("{log}");
    assert!(status.success(), "the container ended with {status}:\n{console}");
    assert!(log.contains("test result: ok. 1 passed"), "the test inside did not pass");
}

/// The supervisor's unit, but it runs this test once and ends the container with the test's result.
fn test_unit(supervisor: &str) -> String {
    let mut unit = String::from(
        "[Unit]\nAfter=sysinit.target dbus.socket\nWants=dbus.socket\nSuccessAction=exit-force\nFailureAction=exit-force\n",
    );
    unit.push_str("FailureActionExitStatus=1\nDefaultDependencies=no\n");
    for line in supervisor.lines().skip_while(|line| *line != "[Service]") {
        let key = line.split('=').next().unwrap_or_default();
        match key {
            "ExecStart" => unit.push_str(
                "ExecStart=/opt/test/test --exact \
                 systemd::tests::units_are_watched_started_and_killed_within_the_sandbox_of_the_supervisor --nocapture\n\
                 StandardOutput=append:/opt/test/out/log\nStandardError=inherit\n",
            ),
            "Type" => unit.push_str("Type=oneshot\n"),
            "WatchdogSec" | "Restart" | "RestartSec" => {}
            _ => {
                unit.push_str(line);
                unit.push('\n');
            }
        }
    }
    unit
}

/// Boots the tree with the base overlay in a container, with a cgroup tree of its own: the host's init need not be systemd.
fn boot(root: &Path, overlay: &Path, out: &Path) -> std::process::ExitStatus {
    let test = std::env::current_exe().unwrap();
    let group = format!("tx-systemd-test-{}", std::process::id());
    let script = format!(
        "set -e
         umount --recursive /sys/fs/cgroup
         mount --types cgroup2 none /sys/fs/cgroup
         mount --types tmpfs tmpfs /run/systemd
         mkdir {out}/root {out}/layers
         mount --types tmpfs tmpfs {out}/layers
         mkdir {out}/layers/upper {out}/layers/work
         mount --types overlay overlay {out}/root \
            --options lowerdir={overlay}:{root},upperdir={out}/layers/upper,workdir={out}/layers/work
         mkdir /sys/fs/cgroup/{group}
         echo $$ > /sys/fs/cgroup/{group}/cgroup.procs
         status=0
         timeout --kill-after=5 300 systemd-nspawn --quiet --boot --directory={out}/root --machine={group} \
            --register=no --keep-unit --private-network --console=pipe --link-journal=no \
            --bind-ro={test}:/opt/test/test --bind={out}:/opt/test/out \
            --bind-ro={out}/test.service:/etc/systemd/system/test.service \
            systemd.wants=test.service systemd.mask=trilith.service systemd.mask=systemd-networkd.service <  /dev/null > {out}/console 2>&1 || status=$?
         echo $$ > /sys/fs/cgroup/cgroup.procs
         find /sys/fs/cgroup/{group} -depth -type d -exec rmdir {{}} + || true
         exit $status",
        root = root.display(),
        overlay = overlay.display(),
        test = test.display(),
        out = out.display(),
    );
    let mut command = Process::new("unshare");
    command
        .args(["--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "bash", "-c", &script])
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
    testing::unshared(&mut command).wait().unwrap()
}

/// What runs as a unit inside.
fn inside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        testing::add_addresses("");
        println!("before: {}", memory());
        let (events, mut received) = mpsc::channel(64);
        let settings = Arc::new(testing::plain_settings());
        let haproxy = haproxy::start(settings, NodeId(0), events.clone()).await.unwrap();
        assert_eq!(haproxy.problem(), None, "`haproxy -c` works within the sandbox");
        println!("configured: {}", memory());
        let units = [
            (Unit::Haproxy, "haproxy.service".to_owned()),
            (ABSENT, "absent.service".to_owned()),
            (BUS, "dbus.service".to_owned()),
        ];
        let handle = start(&units, events.clone());
        wait(&mut received, Event::Unit { unit: Unit::Haproxy, active: false }).await;
        wait(&mut received, Event::Unit { unit: ABSENT, active: false }).await;
        println!("connected: {}", memory());

        handle.commands.send(Command::Start(Unit::Haproxy)).await.unwrap();
        let began = Instant::now();
        wait(&mut received, Event::Done { deed: Deed::Start(Unit::Haproxy), result: Ok(()) }).await;
        wait(&mut received, Event::Unit { unit: Unit::Haproxy, active: true }).await;
        println!("HAProxy is active after {:?}", began.elapsed());
        haproxy.started();
        haproxy.commands.send(Command::Backend { node: NodeId(1), state: BackendState::Down }).await.unwrap();
        wait(&mut received, Event::Done { deed: Deed::Backend(NodeId(1)), result: Ok(()) }).await;
        // Done, too, if it does not listen within a second.
        testing::until("HAProxy tells", async || haproxy.flows().await.is_ok()).await;
        let flows = haproxy.flows().await.unwrap();
        assert_eq!(flows.backends.len(), 6, "the sockets of another user's HAProxy are reached: {flows:?}");
        assert_eq!(flows.backends[1].state, "MAINT");

        // Killed hard: its death is known at once, and so is its return.
        for _ in 0..3 {
            handle.commands.send(Command::Restart(Unit::Haproxy)).await.unwrap();
            let began = Instant::now();
            wait(&mut received, Event::Unit { unit: Unit::Haproxy, active: false }).await;
            let dead = began.elapsed();
            wait(&mut received, Event::Unit { unit: Unit::Haproxy, active: true }).await;
            println!("restart: HAProxy is inactive after {dead:?}, active after {:?}", began.elapsed());
        }

        // A reload within HAProxy's own sandbox loses neither the unit nor a port. (Done means that HAProxy is up to date.)
        haproxy.started();
        haproxy.commands.send(Command::Backend { node: NodeId(1), state: BackendState::Ready }).await.unwrap();
        wait(&mut received, Event::Done { deed: Deed::Backend(NodeId(1)), result: Ok(()) }).await;
        let mut changed = testing::plain_settings();
        changed.services[0].port = 81;
        let haproxy = haproxy::start(Arc::new(changed), NodeId(0), events.clone()).await.unwrap();
        assert_eq!(haproxy.problem(), None);
        let opens = async |port| tokio::net::TcpStream::connect(("10.77.0.10", port)).await.is_ok();
        testing::until("the new port is open", async || opens(81).await).await;
        // By the worker that is replaced, which is told so when the new one serves.
        testing::until("the old port is closed", async || !opens(80).await).await;
        assert_eq!(haproxy.flows().await.unwrap().backends.len(), 6);

        handle.commands.send(Command::Start(ABSENT)).await.unwrap();
        let done = next(&mut received, |event| {
            assert!(!matches!(event, Event::Unit { .. }), "the reload was no restart");
            matches!(event, Event::Done { deed: Deed::Start(ABSENT), .. })
        })
        .await;
        let Event::Done { result: Err(why), .. } = done else { panic!("{done:?}") };
        assert!(why.contains("absent.service not found"), "{why}");

        // A program that runs as a unit of its own, twice under one name, and one that fails.
        for _ in 0..2 {
            run_program("test-program.service", &["/usr/bin/test", "-d", "/run"], testing::PATIENCE).await.unwrap();
            let failed = run_program("test-program.service", &["/usr/bin/test", "-f", "/run"], testing::PATIENCE).await;
            assert_eq!(failed, Err("test-program.service: failed; the node's logs say more".to_owned()));
        }

        // The bus is killed, with the answer to that: all states are told anew, and commands are carried out again.
        handle.commands.send(Command::Restart(BUS)).await.unwrap();
        let began = Instant::now();
        let done = next(&mut received, |event| matches!(event, Event::Done { deed: Deed::Restart(BUS), .. })).await;
        assert!(matches!(done, Event::Done { result: Err(_), .. }), "{done:?}");
        wait(&mut received, Event::Unit { unit: Unit::Haproxy, active: true }).await;
        wait(&mut received, Event::Unit { unit: ABSENT, active: false }).await;
        println!("the bus is back after {:?}", began.elapsed());
        handle.commands.send(Command::Start(Unit::Haproxy)).await.unwrap();
        wait(&mut received, Event::Done { deed: Deed::Start(Unit::Haproxy), result: Ok(()) }).await;
        println!("at the end: {}", memory());
    });
}

async fn wait(received: &mut mpsc::Receiver<Event>, wanted: Event) {
    next(received, |event| *event == wanted).await;
}

async fn next(received: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let waiting = async {
        loop {
            let event = received.recv().await.expect("the shell runs on");
            println!("  {event:?}");
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(testing::PATIENCE, waiting).await.expect("the event comes")
}

/// Resident memory of this process, for the record.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned()
}
