use super::*;
use crate::answers::SetPart;

/// A root of its own for one test, gone at its end.
struct Root(PathBuf);

impl Root {
    fn new(test: &str) -> Root {
        let path = std::env::temp_dir().join(format!("trilith-store-{test}-{}", std::process::id()));
        fs::create_dir_all(path.join(DIRECTORY)).unwrap();
        Root(path)
    }

    fn store(&self) -> Store {
        Store::below(&self.0)
    }

    /// Every file of the state with its content, in order.
    fn state(&self) -> BTreeMap<String, String> {
        fn walk(at: &Path, name: &str, found: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(at).unwrap().flatten() {
                let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &name, found);
                } else {
                    found.insert(name, fs::read_to_string(entry.path()).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.0.join(DIRECTORY), "", &mut found);
        found
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn answers(id: &str) -> Answers {
    let mut answers = Answers { instance_id: id.to_owned(), hostname: Some("a".to_owned()), ..Answers::default() };
    answers.user("admin").password = Some(Secret("$6$salt$hash".to_owned()));
    let secret = Some(Secret(format!("secret of {id}")));
    answers.set = Some(SetPart { document: format!("# {id}\n"), secret, node: "a".to_owned() });
    let file = |path: &str, append| StateFile { path: path.to_owned(), content: b"x\n".to_vec(), mode: 0o640, append };
    answers.files = vec![file("one", false), file("deep/two", true), file("deep/two", true)];
    answers
}

/// What is loaded again: all but what is written once.
fn kept(id: &str) -> Answers {
    Answers { set: None, files: Vec::new(), ..answers(id) }
}

#[test]
fn answers_are_stored_whole_and_the_record_holds_no_secret() {
    let root = Root::new("whole");
    assert_eq!(root.store().load().unwrap(), None);
    root.store().store(&answers("one")).unwrap();
    assert_eq!(root.store().load().unwrap(), Some(kept("one")));
    let state = root.state();
    assert_eq!(state["/secret"], "secret of one\n");
    assert_eq!(state["/files/deep/two"], "x\nx\n");
    assert!(!state["/answers.toml"].contains("secret") && !state["/answers.toml"].contains("$6$"));
    for name in ["secret", "passwords"] {
        let mode = fs::metadata(root.0.join(DIRECTORY).join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(state.len(), 7, "{state:?}");
}

/// A power cut is a copy of the directory in which only the first steps have happened. Steps are renames and removals, so each
/// state on the way is one of these.
#[test]
fn a_power_cut_at_any_step_leaves_nothing_or_everything() {
    let done = {
        let root = Root::new("done");
        root.store().store(&answers("one")).unwrap();
        root.state()
    };
    // Torn before the commit: nothing is there and nothing stays.
    let root = Root::new("torn");
    let staged = root.store().path(STAGED);
    directory(&staged.join(FILES)).unwrap();
    fs::write(staged.join("secret"), "half").unwrap();
    root.store().recover().unwrap();
    assert_eq!(root.state(), BTreeMap::new());
    // After the commit, with the first so many files moved.
    let names = ["set.toml", "secret", "node", PASSWORDS, "files/one", "files/deep/two", RECORD];
    for moved in 0..=names.len() {
        let root = Root::new(&format!("cut-{moved}"));
        let store = root.store();
        let committed = store.path(COMMITTED);
        directory(&committed.join("files/deep")).unwrap();
        directory(&store.path("files/deep")).unwrap();
        fs::write(committed.join(GONE), "").unwrap();
        for (place, name) in names.iter().enumerate() {
            let at = if place < moved { store.path(name) } else { committed.join(name) };
            fs::write(at, &done[&format!("/{name}")]).unwrap();
        }
        store.recover().unwrap();
        assert_eq!(root.state(), done, "after {moved} moves");
        assert_eq!(store.load().unwrap(), Some(kept("one")));
    }
}

#[test]
fn a_reset_replaces_everything_and_leaves_nothing_behind() {
    let root = Root::new("reset");
    let store = root.store();
    store.store(&answers("one")).unwrap();
    store.want_reset().unwrap();
    assert!(store.reset_is_wanted());
    store.store(&Answers { instance_id: "two".to_owned(), ..Answers::default() }).unwrap();
    assert!(!store.reset_is_wanted());
    let state = root.state();
    assert!(!state.contains_key("/secret") && !state.contains_key("/set.toml"), "{state:?}");
    assert_eq!(store.load().unwrap().unwrap().instance_id, "two");
}

#[test]
fn a_reset_keeps_what_the_set_has_agreed_on_unless_the_node_leaves_it() {
    let document = |name: &str, address: &str| {
        format!(
            "[set]\nname = \"{name}\"\nsecret_file = \"/var/lib/trilith/secret\"\n[[node]]\nname = \"a\"\naddress = \"{address}\"\n\
             [[vip]]\nname = \"public\"\naddress = \"10.0.0.10/24\"\ninterface = \"eth0\"\n"
        )
    };
    let answers = |name: &str, address: &str, secret: &str| {
        let (document, node) = (document(name, address), "a".to_owned());
        Answers { set: Some(SetPart { document, secret: Some(Secret(secret.to_owned())), node }), ..Answers::default() }
    };
    let (one, agreed) = (answers("one", "10.0.0.11", "s"), format!("# later\n{}", document("one", "10.0.0.11")));
    let others = [("two", "10.0.0.11", "s"), ("one", "10.0.0.12", "s"), ("one", "10.0.0.11", "t")];
    for (stays, next) in std::iter::once((true, one.clone())).chain(others.map(|(n, a, s)| (false, answers(n, a, s)))) {
        let root = Root::new("agreed");
        let store = root.store();
        store.store(&one).unwrap();
        fs::write(store.path("set.toml"), &agreed).unwrap();
        fs::create_dir(store.path("raft")).unwrap();
        fs::write(store.path("raft/log"), "log").unwrap();
        fs::write(store.path("coordinator.json"), "{}").unwrap();
        store.want_reset().unwrap();
        store.store(&next).unwrap();
        let state = root.state();
        let given = &next.set.as_ref().unwrap().document;
        assert_eq!(state["/set.toml"], if stays { agreed.clone() } else { given.clone() });
        let kept = ["/raft/log", "/coordinator.json"].map(|name| state.contains_key(name));
        assert_eq!(kept, [stays; 2], "{given}");
    }
}

#[test]
fn a_secret_that_is_a_file_tells_the_sets_apart_too() {
    let document = "[set]\nname = \"one\"\nsecret_file = \"/var/lib/trilith/files/key\"\n[[node]]\nname = \"a\"\n\
                    address = \"10.0.0.11\"\n[[vip]]\nname = \"public\"\naddress = \"10.0.0.10/24\"\ninterface = \"eth0\"\n";
    let answers = |secret: &str| {
        let set = SetPart { document: document.to_owned(), secret: None, node: "a".to_owned() };
        let file = StateFile { path: "key".to_owned(), content: secret.into(), mode: 0o600, append: false };
        Answers { set: Some(set), files: vec![file], ..Answers::default() }
    };
    for (next, stays) in
        [(answers("s\n"), true), (answers("t"), false), (Answers { files: vec![], ..answers("") }, true)]
    {
        let root = Root::new("secret-file");
        let store = root.store();
        store.store(&answers("s")).unwrap();
        fs::create_dir(store.path("raft")).unwrap();
        store.want_reset().unwrap();
        store.store(&next).unwrap();
        assert_eq!(store.path("raft").exists(), stays);
    }
}

#[test]
fn a_set_that_an_admin_put_there_survives_a_first_boot_without_one() {
    let root = Root::new("admin");
    fs::write(root.store().path("set.toml"), "mine").unwrap();
    root.store().store(&Answers::default()).unwrap();
    assert_eq!(root.state()["/set.toml"], "mine");
}

#[test]
fn a_record_of_a_later_version_is_read_and_a_damaged_one_is_told() {
    let root = Root::new("later");
    let store = root.store();
    fs::write(store.path(RECORD), "instance_id = \"x\"\nsomething_new = 1\n[unheard_of]\na = 1\n").unwrap();
    assert_eq!(store.load().unwrap().unwrap().instance_id, "x");
    fs::write(store.path(RECORD), "instance_id = ").unwrap();
    let error = format!("{:#}", store.load().unwrap_err());
    assert!(error.contains("answers.toml"), "{error}");
}
