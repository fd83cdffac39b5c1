//! The watches against an API server that misbehaves.

use super::tests::{namespace_object, node_object, pod_object, policy_object};
use crate::directory::{Decision, Directory};
use crate::metrics::NodeMetrics;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(super) const PODS: &str = "/api/v1/pods";
const NODES: &str = "/api/v1/nodes";
const NAMESPACES: &str = "/api/v1/namespaces";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const PATIENCE: Duration = Duration::from_secs(20);

/// How the server answers watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    /// HTTP 410 to a watch of old versions.
    Gone,
    /// The same as an event within the watch.
    GoneWithin,
    /// Nothing is answered.
    Down,
    Forbidden,
}

struct State {
    objects: BTreeMap<(String, String), Value>,
    /// What happened: version, path, event.
    log: Vec<(u64, String, Value)>,
    version: u64,
    mood: Mood,
    lists: usize,
    page: usize,
}

/// An API server of a few lines: lists in pages (of one, if nothing else is said), watches, and moods.
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Tells watches to look at the log, or (when the mood changed) to end.
    changed: watch::Sender<()>,
    pub kubeconfig: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

impl FakeApi {
    pub async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kubeconfig = std::env::temp_dir().join(format!(
            "rdmesh-kubeconfig-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            log: Vec::new(),
            version: 1,
            mood: Mood::Good,
            lists: 0,
            page: 1,
        }));
        let changed = watch::Sender::new(());
        let (accepting, signal) = (state.clone(), changed.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(answer(stream, accepting.clone(), signal.subscribe()));
            }
        });
        Self { state, changed, kubeconfig, task }
    }

    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let key = (path.to_owned(), object["metadata"]["name"].as_str().unwrap().to_owned());
        let kind =
            if state.objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        let event = (state.version, path.to_owned(), json!({"type": kind, "object": object}));
        state.log.push(event);
        drop(state);
        self.changed.send_replace(());
    }

    fn remove(&self, path: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let mut object = state.objects.remove(&(path.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let event = (state.version, path.to_owned(), json!({"type": "DELETED", "object": object}));
        state.log.push(event);
        drop(state);
        self.changed.send_replace(());
    }

    /// Ends all watches; those to come see the new mood.
    fn set_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
        self.changed.send_replace(());
    }

    /// Changes what is stored, and no watch tells.
    pub fn forget_history(&self) {
        self.state.lock().unwrap().log.clear();
    }

    pub fn set_page(&self, objects: usize) {
        self.state.lock().unwrap().page = objects;
    }

    fn lists(&self) -> usize {
        self.state.lock().unwrap().lists
    }
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>, changed: watch::Receiver<()>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<&str, &str> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let mood = state.lock().unwrap().mood;
    let is_watch = query.get("watch") == Some(&"true");
    match mood {
        Mood::Down => {}
        Mood::Forbidden => respond(&mut stream, 403, &failure(403)).await,
        Mood::Gone if is_watch => respond(&mut stream, 410, &failure(410)).await,
        _ if is_watch => {
            let version = query["resourceVersion"].parse().unwrap();
            follow(stream, &state, path, version, changed).await;
        }
        _ => {
            let page = list(&mut state.lock().unwrap(), path, &query);
            respond(&mut stream, 200, &page).await;
        }
    }
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
           "message": "so", "reason": "so"})
}

async fn respond(stream: &mut TcpStream, code: u16, body: &Value) {
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {code} so\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
}

fn list(state: &mut State, path: &str, query: &BTreeMap<&str, &str>) -> Value {
    let at: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    state.lists += usize::from(at == 0);
    let all: Vec<&Value> =
        state.objects.iter().filter(|((kind, _), _)| kind == path).map(|(_, o)| o).collect();
    let end = (at + state.page).min(all.len());
    let next = (end < all.len()).then(|| end.to_string());
    json!({
        "apiVersion": "v1", "kind": "List", "groups": [],
        "metadata": {"resourceVersion": state.version.to_string(), "continue": next},
        "items": all.get(at..end).unwrap_or_default(),
    })
}

async fn follow(
    mut stream: TcpStream,
    state: &Mutex<State>,
    path: &str,
    mut version: u64,
    mut changed: watch::Receiver<()>,
) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    loop {
        let lines: String = {
            let state = state.lock().unwrap();
            if state.mood == Mood::GoneWithin {
                json!({"type": "ERROR", "object": failure(410)}).to_string() + "\n"
            } else {
                let news = state.log.iter().filter(|(at, kind, _)| *at > version && kind == path);
                news.map(|(_, _, event)| format!("{event}\n")).collect()
            }
        };
        let mood = {
            let state = state.lock().unwrap();
            version = state.version;
            state.mood
        };
        if mood != Mood::Down && stream.write_all(lines.as_bytes()).await.is_err() {
            return;
        }
        if mood != Mood::Good || changed.changed().await.is_err() {
            return;
        }
    }
}

struct Rig {
    api: FakeApi,
    directory: Arc<Directory>,
    task: tokio::task::JoinHandle<()>,
    generations: watch::Receiver<u64>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rig {
    /// Two nodes and a client pod of node `a`, where the directory runs.
    async fn new() -> Self {
        let api = FakeApi::start().await;
        api.put(NODES, node_object("a", "192.0.2.1", "z"));
        api.put(NODES, node_object("b", "192.0.2.2", "z"));
        api.put(NAMESPACES, namespace_object("default", &json!({})));
        api.put(PODS, pod_object("default", "c", "a", &["10.0.0.1"], &json!({})));
        let metrics = Arc::new(NodeMetrics::new());
        let listen = "0.0.0.0:15700".parse().unwrap();
        let directory = Directory::kubernetes(&api.kubeconfig, "a", listen, metrics).await.unwrap();
        let directory = Arc::new(directory);
        let generations = directory.watch();
        let task = tokio::spawn(directory.clone().run());
        Self { api, directory, task, generations }
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Directory) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so(&self.directory) {
                self.generations.changed().await.unwrap();
            }
        });
        let seen = waited.await.is_ok();
        let (snapshot, lists) = (self.directory.snapshot(), self.api.lists());
        assert!(seen, "never seen: {what}; after {lists} lists {snapshot:?}");
    }

    async fn until_pods(&mut self, count: usize) {
        let what = format!("{count} pods");
        self.until(&what, move |directory| directory.snapshot().pods_total() == count).await;
    }

    fn server(&self, number: u8) {
        let (name, ip) = (format!("s{number}"), format!("10.0.1.{number}"));
        self.api.put(PODS, pod_object("default", &name, "b", &[&ip], &json!({})));
    }

    fn resolve(&self) -> Decision {
        let snapshot = self.directory.snapshot();
        let client = snapshot.local_pod_by_uid("uid-c").unwrap();
        snapshot.resolve(client, "10.0.1.1:80".parse().unwrap())
    }
}

#[tokio::test]
async fn lists_in_pages_and_follows() {
    let mut rig = Rig::new().await;
    assert_eq!(rig.directory.generation(), 0);
    rig.until_pods(1).await;
    assert_eq!(rig.directory.snapshot().nodes().len(), 2);
    rig.server(1);
    rig.until_pods(2).await;
    assert!(matches!(rig.resolve(), Decision::Mesh { .. }));
    let deny = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    rig.api.put(POLICIES, policy_object("default", "deny", &deny));
    let changed = tokio::time::Instant::now();
    while rig.resolve() != Decision::Deny {
        tokio::time::timeout(PATIENCE, rig.generations.changed()).await.unwrap().unwrap();
    }
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    rig.api.remove(POLICIES, "deny");
    while rig.resolve() == Decision::Deny {
        tokio::time::timeout(PATIENCE, rig.generations.changed()).await.unwrap().unwrap();
    }
    rig.api.remove(PODS, "s1");
    rig.until_pods(1).await;
    // All of this with one list of each kind, and that of the API groups.
    assert_eq!(rig.api.lists(), 7);
}

#[tokio::test]
async fn history_that_is_gone_means_a_new_list() {
    for mood in [Mood::Gone, Mood::GoneWithin] {
        let mut rig = Rig::new().await;
        rig.until_pods(1).await;
        rig.server(1);
        rig.until_pods(2).await;
        // What happens now no watch will ever tell.
        rig.api.set_mood(mood);
        rig.server(2);
        rig.api.remove(PODS, "s1");
        rig.server(3);
        rig.api.forget_history();
        rig.until("the new list", |directory| {
            let snapshot = directory.snapshot();
            let has = |ip: &str| snapshot.pod(ip.parse().unwrap()).is_some();
            has("10.0.1.2") && has("10.0.1.3") && !has("10.0.1.1")
        })
        .await;
        rig.api.set_mood(Mood::Good);
        rig.server(4);
        rig.until_pods(4).await;
    }
}

#[tokio::test]
async fn the_last_state_stays_while_there_is_no_server() {
    for mood in [Mood::Down, Mood::Forbidden] {
        let mut rig = Rig::new().await;
        rig.server(1);
        rig.until_pods(2).await;
        rig.api.set_mood(mood);
        rig.server(2);
        rig.api.forget_history();
        // Enough for some tries: nothing is lost by them.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(rig.directory.snapshot().pods_total(), 2);
        assert!(matches!(rig.resolve(), Decision::Mesh { .. }));
        rig.api.set_mood(Mood::Good);
        rig.server(3);
        rig.until("the pod made after it", |directory| {
            directory.snapshot().pod("10.0.1.3".parse().unwrap()).is_some()
        })
        .await;
    }
}

#[tokio::test]
async fn nothing_is_known_before_everything_is_listed() {
    let api = FakeApi::start().await;
    api.set_mood(Mood::Forbidden);
    let metrics = Arc::new(NodeMetrics::new());
    let listen = "0.0.0.0:15700".parse().unwrap();
    let directory = Directory::kubernetes(&api.kubeconfig, "a", listen, metrics).await.unwrap();
    let directory = Arc::new(directory);
    let task = tokio::spawn(directory.clone().run());
    let mut generations = directory.watch();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(directory.generation(), 0);
    assert_eq!(directory.snapshot().nodes().len(), 1);
    api.set_mood(Mood::Good);
    tokio::time::timeout(PATIENCE, generations.changed()).await.unwrap().unwrap();
    assert_eq!(directory.generation(), 1);
    task.abort();
}
