//! The logic of verdicts, and the recipes as the directory file writes them. The recipes as
//! Kubernetes writes them are tested beside its conversion.

use super::*;
use crate::directory::{Decision, Snapshot};
use crate::metrics::PassthroughReason;
use rdmesh_config::DirectoryFile;

fn text(text: &str) -> Arc<str> {
    text.into()
}

fn subject(namespace: &str, labels: &[(&str, &str)]) -> Subject {
    Subject {
        namespace: namespace.into(),
        labels: Labels::new(labels.iter().map(|(k, v)| (text(k), text(v))).collect()),
        ports: [(text("http"), 8080)].into(),
    }
}

fn all() -> Selector {
    Selector::default()
}

fn only(requirement: Requirement) -> Selector {
    Selector([requirement].into())
}

fn from(peer: Peer) -> Rule {
    Rule { peers: Some([peer].into()), ports: None }
}

fn on(port: PortMatch) -> Rule {
    Rule { peers: None, ports: Some([port].into()) }
}

fn policy(pods: Selector, ingress: &[Rule]) -> Policy {
    Policy {
        name: "p".into(),
        namespace: "ns".into(),
        pods,
        ingress: Some(ingress.into()),
        egress: None,
    }
}

/// What the policies say to a connection from `10.0.0.9`, a pod of `other`, to port 8080.
fn verdict(policies: &[Policy], source: Option<&Subject>) -> Verdict {
    let own = subject("ns", &[("app", "web"), ("tier", "front")]);
    let uid = text("uid");
    let namespaces =
        ["ns", "other"].map(|n| (text(n), Labels::new(vec![(text("team"), text(n))]))).into();
    let policies = policies.iter().cloned().map(Arc::new);
    let table = PolicyTable::build(policies, namespaces, [(&uid, &own)]);
    let end = End { subject: source, address: "10.0.0.9".parse().unwrap() };
    table.ingress(&uid, &own, end, 8080)
}

#[test]
fn policies_add_up_and_nothing_unknown_is_guessed() {
    let app = || only(Requirement::Equals(text("app"), text("web")));
    let elsewhere = || only(Requirement::Equals(text("app"), text("db")));
    let unknown = || only(Requirement::Unknown);
    let nobody: &[Rule] = &[];
    let everybody = &[Rule::default()];
    let unclear = &[from(Peer::Unknown)];
    use Verdict::{Allow, Deny, Unknown};
    let source = subject("other", &[]);
    for (number, (policies, wanted)) in [
        (vec![], Allow),
        (vec![policy(all(), nobody)], Deny),
        (vec![policy(elsewhere(), nobody)], Allow),
        (vec![policy(app(), nobody), policy(all(), everybody)], Allow),
        (vec![policy(app(), unclear)], Unknown),
        (vec![policy(app(), unclear), policy(app(), nobody)], Unknown),
        // What is allowed for certain needs no further look.
        (vec![policy(app(), unclear), policy(app(), everybody)], Allow),
        // It may bear on the pod or not: denied or allowed, nobody knows.
        (vec![policy(unknown(), nobody)], Unknown),
        (vec![policy(unknown(), nobody), policy(all(), everybody)], Allow),
        (vec![policy(unknown(), nobody), policy(all(), nobody)], Unknown),
        // A pod that another requirement rules out is not concerned.
        (
            vec![policy(
                Selector([Requirement::Unknown, Requirement::Absent(text("app"))].into()),
                nobody,
            )],
            Allow,
        ),
        (vec![policy(all(), &[on(PortMatch::Range(80, 8080))])], Allow),
        (vec![policy(all(), &[on(PortMatch::Range(8081, 9000))])], Deny),
        (vec![policy(all(), &[on(PortMatch::Named(text("http")))])], Allow),
        (vec![policy(all(), &[on(PortMatch::Named(text("admin")))])], Deny),
        (vec![policy(all(), &[on(PortMatch::Unknown)])], Unknown),
        (vec![policy(all(), &[Rule { peers: None, ports: Some([].into()) }])], Deny),
        // The port rules it out, whatever the peer is.
        (
            vec![policy(
                all(),
                &[Rule {
                    peers: Some([Peer::Unknown].into()),
                    ports: Some([PortMatch::Range(1, 2)].into()),
                }],
            )],
            Deny,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(verdict(&policies, Some(&source)), wanted, "case {number}");
    }
}

#[test]
fn peers() {
    let pods = |namespaces: Option<Selector>, pods| {
        [policy(all(), &[from(Peer::Pods { namespaces, pods })])]
    };
    let block = |cidr: &str, except: &[&str]| {
        let except = except.iter().map(|net| net.parse().unwrap()).collect();
        [policy(all(), &[from(Peer::Block { cidr: cidr.parse().unwrap(), except })])]
    };
    let team = |team: &str| Some(only(Requirement::In(text("team"), [text(team)].into())));
    let own = subject("ns", &[("role", "client")]);
    let other = subject("other", &[("role", "client")]);
    let strange = subject("strange", &[]);
    let client = || only(Requirement::Exists(text("role")));
    use Verdict::{Allow, Deny, Unknown};
    for (number, (policies, source, wanted)) in [
        (pods(None, all()), Some(&own), Allow),
        (pods(None, all()), Some(&other), Deny),
        (pods(Some(all()), all()), Some(&other), Allow),
        (pods(Some(all()), all()), Some(&strange), Allow),
        (pods(team("other"), all()), Some(&other), Allow),
        (pods(team("other"), all()), Some(&own), Deny),
        (pods(team("other"), client()), Some(&other), Allow),
        // Its namespace is not known, so neither are the namespace's labels.
        (pods(team("other"), all()), Some(&strange), Unknown),
        (pods(team("other"), client()), Some(&strange), Deny),
        (pods(None, all()), None, Unknown),
        (block("10.0.0.0/8", &[]), None, Allow),
        (block("10.0.0.0/8", &["10.0.0.8/29"]), None, Deny),
        (block("10.0.0.0/8", &["10.0.0.16/28"]), None, Allow),
        (block("192.0.2.0/24", &[]), None, Deny),
        (block("::/0", &[]), None, Deny),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(verdict(&policies, source), wanted, "case {number}");
    }
}

#[test]
fn selectors() {
    let labels = Labels::new(vec![(text("app"), text("web")), (text("env"), text("prod"))]);
    let values = || [text("web"), text("db")].into();
    for (requirement, wanted) in [
        (Requirement::In(text("app"), values()), Match::Yes),
        (Requirement::In(text("env"), values()), Match::No),
        (Requirement::In(text("none"), values()), Match::No),
        (Requirement::NotIn(text("app"), values()), Match::No),
        (Requirement::NotIn(text("env"), values()), Match::Yes),
        (Requirement::NotIn(text("none"), values()), Match::Yes),
        (Requirement::Exists(text("app")), Match::Yes),
        (Requirement::Exists(text("none")), Match::No),
        (Requirement::Absent(text("app")), Match::No),
        (Requirement::Absent(text("none")), Match::Yes),
        (Requirement::Equals(text("app"), text("web")), Match::Yes),
        (Requirement::Equals(text("app"), text("we")), Match::No),
    ] {
        assert_eq!(only(requirement.clone()).matches(&labels), wanted, "{requirement:?}");
    }
    assert_eq!(all().matches(&Labels::default()), Match::Yes);
}

const FILE: &str = "
nodes:
  - {name: a, address: '192.0.2.1:15700'}
  - {name: b, address: '192.0.2.2:15700'}
pods:
  - {name: web, uid: web, node: a, addresses: [10.0.0.1], namespace: shop, labels: {app: web}, ports: {http: 8080}}
  - {name: cart, uid: cart, node: a, addresses: [10.0.0.2], namespace: shop, labels: {app: cart}}
  - {name: db, uid: db, node: b, addresses: [10.0.1.3], namespace: shop, labels: {app: db}}
  - {name: job, uid: job, node: b, addresses: [10.0.1.4], namespace: batch, labels: {app: job}}
services:
  - {name: db, addresses: [10.43.0.1], ports: [{port: 5432, endpoints: [{address: '10.0.1.3:5433'}]}]}
namespaces:
  batch: {team: data}
policies:
  - name: web-from-data
    namespace: shop
    pods: {match_labels: {app: web}}
    ingress:
      - peers:
          - namespaces: {match_labels: {team: data}}
          - pods: {match_labels: {app: cart}}
        ports: [{name: http}, {port: 9000, end_port: 9010}]
  - name: cart-to-db
    namespace: shop
    pods: {match_labels: {app: cart}}
    egress:
      - peers: [{pods: {match_labels: {app: db}}}]
        ports: [{port: 5433}]
      - peers: [{cidr: 10.0.1.0/24, except: [10.0.1.3/32]}]
";

#[test]
fn policies_of_the_directory_file() {
    let file = DirectoryFile::from_yaml(FILE, "test").unwrap();
    let snapshot = Snapshot::build(&file, "a", 1).unwrap();
    let pod = |uid: &str| snapshot.local_pod_by_uid(uid).unwrap();
    let web = |source: &str, port| snapshot.ingress(pod("web"), source.parse().unwrap(), port);
    use Verdict::{Allow, Deny};
    for (source, port, wanted) in [
        ("10.0.1.4", 8080, Allow),
        ("10.0.1.4", 9005, Allow),
        ("10.0.1.4", 9011, Deny),
        ("10.0.0.2", 8080, Allow),
        ("10.0.1.3", 8080, Deny),
        // Itself.
        ("10.0.0.1", 1, Allow),
    ] {
        assert_eq!(web(source, port), wanted, "{source} {port}");
    }
    assert_eq!(snapshot.ingress(pod("cart"), "10.0.1.4".parse().unwrap(), 1), Allow);

    let go = |from: &str, to: &str| snapshot.resolve(pod(from), to.parse().unwrap());
    // By the service, and by its endpoint: the endpoint's port counts.
    assert!(matches!(go("cart", "10.43.0.1:5432"), Decision::Mesh { .. }));
    assert!(matches!(go("cart", "10.0.1.3:5433"), Decision::Mesh { .. }));
    assert_eq!(go("cart", "10.0.1.3:5432"), Decision::Deny);
    assert!(matches!(go("cart", "10.0.1.4:1"), Decision::Mesh { .. }));
    assert_eq!(go("cart", "10.0.0.1:8080"), Decision::Deny);
    assert!(matches!(go("cart", "10.0.0.2:1"), Decision::Local { .. }));
    assert!(matches!(go("web", "10.0.1.3:5432"), Decision::Mesh { .. }));
    // Outside of the mesh the CNI judges.
    let outside = Decision::Passthrough { reason: PassthroughReason::OutsideMesh };
    assert_eq!(go("cart", "198.51.100.1:443"), outside);
}
