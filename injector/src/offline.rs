//! The same patch for files: manifests in, manifests out.
//!
//! Documents that are no workloads, or whose pods are not meshed, stay as they are, letter by letter. What
//! it does not do: keep the comments of the documents that it changes, or ask a cluster.

use crate::decision::{Decision, Scope, decide};
use crate::diff::diff;
use crate::patch::{apply, patch};
use crate::settings::Settings;
use crate::template::Template;
use crate::yaml::to_yaml;
use rdmesh_config::{Faults, read_documents, split_documents};
use serde_json::Value;

/// A List may hold Lists; nobody nests them deeper.
const LISTS_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Yaml(#[from] Faults),
    #[error("{}", .0.join("\n"))]
    Rejected(Vec<String>),
}

/// What became of the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Injected {
    pub manifests: String,
    /// What changed, for a person.
    pub diff: String,
    /// One line for each workload, and warnings.
    pub notes: Vec<String>,
}

/// Where the text comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub text: &'a str,
    pub origin: &'a str,
    /// Of objects that do not name theirs.
    pub namespace: &'a str,
}

/// # Errors
/// When a document is no YAML, or pods in it would be rejected; all of them are told.
pub fn inject(
    source: Source<'_>,
    template: &Template,
    settings: &Settings,
) -> Result<Injected, OfflineError> {
    // Once as a whole, so that faults have the line in the file.
    read_documents::<Value>(source.text, source.origin)?;
    let mut job = Job { source, template, settings, notes: Vec::new(), faults: Vec::new() };
    let mut out = Injected::default();
    for (number, (line, text)) in split_documents(source.text).into_iter().enumerate() {
        if number > 0 {
            out.manifests.push_str("---\n");
        }
        let mut documents: Vec<Value> = read_documents(text, source.origin)?;
        let (Some(mut document), true) = (documents.pop(), documents.is_empty()) else {
            out.manifests.push_str(text);
            continue;
        };
        let before = document.clone();
        job.object(&mut document, line, 0);
        if document == before {
            out.manifests.push_str(text);
        } else {
            let after = to_yaml(&document);
            let name = format!("{}:{line}", source.origin);
            out.diff.push_str(&diff(&name, &to_yaml(&before), &after));
            out.manifests.push_str(&after);
        }
        if !out.manifests.ends_with('\n') && !out.manifests.is_empty() {
            out.manifests.push('\n');
        }
    }
    if !job.faults.is_empty() {
        return Err(OfflineError::Rejected(job.faults));
    }
    out.notes = job.notes;
    Ok(out)
}

struct Job<'a> {
    source: Source<'a>,
    template: &'a Template,
    settings: &'a Settings,
    notes: Vec<String>,
    faults: Vec<String>,
}

impl Job<'_> {
    fn object(&mut self, object: &mut Value, line: usize, depth: usize) {
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut)
            && kind.ends_with("List")
            && depth < LISTS_MAX
        {
            for item in items {
                self.object(item, line, depth + 1);
            }
            return;
        }
        let Some(pod) = pod_path(&kind) else { return };
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or(self.source.namespace).to_owned();
        let named = text("/metadata/name").or_else(|| text("/metadata/generateName"));
        let title =
            format!("{}:{line}: {kind} {namespace}/{}", self.source.origin, named.unwrap_or("?"));
        let Some(pod) = object.pointer_mut(pod) else { return };
        match self.pod(pod, &namespace) {
            Ok(lines) => {
                self.notes.extend(lines.into_iter().map(|text| format!("{title}: {text}")));
            }
            Err(fault) => self.faults.push(format!("{title}: {fault}")),
        }
    }

    fn pod(&self, pod: &mut Value, namespace: &str) -> Result<Vec<String>, String> {
        if let Decision::Skip(skip) = decide(pod, namespace, Scope::Namespace, self.settings)? {
            return Ok(vec![format!("skipped: {}", skip.why())]);
        }
        let patch = patch(pod, self.template, self.settings)?;
        apply(pod, &patch.operations)?;
        let told = if patch.operations.is_empty() { "has all parts already" } else { "injected" };
        let warnings = patch.warnings.into_iter().map(|warning| format!("warning: {warning}"));
        Ok([told.to_owned()].into_iter().chain(warnings).collect())
    }
}

/// Where an object of this kind has its pod.
fn pod_path(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "ReplicationController" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        "PodTemplate" => Some("/template"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;

    fn run(text: &str) -> Result<Injected, OfflineError> {
        let source = Source { text, origin: "f.yaml", namespace: "default" };
        inject(source, &Template::built_in().unwrap(), &settings("{}"))
    }

    const POD: &str = "{containers: [{name: web, image: web}]}";

    fn workload(kind: &str) -> String {
        let template = format!("{{metadata: {{labels: {{app: a}}}}, spec: {POD}}}");
        let rest = match kind {
            "Pod" => format!("spec: {POD}"),
            "CronJob" => format!("spec: {{jobTemplate: {{spec: {{template: {template}}}}}}}"),
            "PodTemplate" => format!("template: {template}"),
            _ => format!("spec: {{template: {template}}}"),
        };
        format!("kind: {kind}\nmetadata: {{name: a}}\n{rest}\n")
    }

    const KINDS: [&str; 9] = [
        "Pod",
        "Deployment",
        "ReplicaSet",
        "StatefulSet",
        "DaemonSet",
        "Job",
        "ReplicationController",
        "CronJob",
        "PodTemplate",
    ];

    #[test]
    fn every_kind_of_workload() {
        for kind in KINDS {
            let injected = run(&workload(kind)).unwrap();
            assert!(injected.manifests.contains("name: rdmesh-proxy"), "{kind}");
            assert_eq!(injected.notes, [format!("f.yaml:1: {kind} default/a: injected")]);
            let again = run(&injected.manifests).unwrap();
            assert_eq!(again.manifests, injected.manifests, "{kind}");
            assert_eq!(again.diff, "");
        }
    }

    #[test]
    fn lists_and_other_documents() {
        let other = "# a comment\nkind: Service\nmetadata: {name:   s}\n";
        let item = workload("Deployment").replace('\n', "\n    ");
        let list = format!("kind: List\nitems:\n  - {}", item.trim_end());
        let text = format!("{other}---\n{list}\n---\n{}---\n", workload("Pod"));
        let injected = run(&text).unwrap();
        assert!(injected.manifests.starts_with(&format!("{other}---\n")), "{}", injected.manifests);
        assert_eq!(injected.manifests.matches("name: rdmesh-proxy\n").count(), 2);
        assert_eq!(injected.notes.len(), 2);
        assert!(injected.notes[1].starts_with("f.yaml:"), "{:?}", injected.notes);
    }

    #[test]
    fn faults_name_file_line_and_object() {
        let bad = "---\nkind: Pod\nmetadata:\n  name: a\n  annotations: {rdmesh.io/fabric: x}\nspec: {}\n";
        let fault = run(bad).unwrap_err().to_string();
        assert!(
            fault.starts_with("f.yaml:2: Pod default/a: annotation rdmesh.io/fabric"),
            "{fault}"
        );
        let fault = run("a: 1\n---\nb: [\n").unwrap_err().to_string();
        assert!(fault.starts_with("f.yaml: line 4"), "{fault}");
    }

    #[test]
    fn a_namespace_of_kubernetes_is_skipped() {
        let text =
            "kind: Pod\nmetadata: {name: a, namespace: kube-system}\nspec: {containers: []}\n";
        let injected = run(text).unwrap();
        assert_eq!(injected.manifests, text);
        assert!(injected.notes[0].contains("skipped"), "{:?}", injected.notes);
    }

    #[test]
    fn empty_input() {
        assert_eq!(run("").unwrap().manifests, "");
        assert_eq!(run("# nothing\n").unwrap().manifests, "# nothing\n");
    }

    #[test]
    fn the_diff_shows_what_is_added() {
        let injected = run(&workload("Pod")).unwrap();
        assert!(
            injected.diff.contains("\n+    rdmesh.io/injected: \"true\"\n"),
            "{}",
            injected.diff
        );
        assert!(
            !injected.diff.lines().skip(2).any(|line| line.starts_with('-')),
            "{}",
            injected.diff
        );
    }
}
