//! AdmissionReview in, AdmissionReview out.
//!
//! What it does not do: HTTP. Whatever comes in, the answer is a value; nothing here panics or grows with
//! more than the size of the input.

use crate::annotations::shorten;
use crate::decision::{Decision, Scope, decide};
use crate::patch::patch;
use crate::settings::Settings;
use crate::template::Template;
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest review that is read: an object of the API server has at most 3 MiB.
pub const REVIEW_BYTES_MAX: usize = 4 << 20;
/// An empty map of 7 bytes takes 600 when it is read: what may be in a review is bounded before that. A pod has some
/// hundred of each.
const CONTAINERS_MAX: usize = 20_000;
const COMMAS_MAX: usize = 100_000;
const API_VERSION: &str = "admission.k8s.io/v1";
/// Longest uid that is sent back.
const UID_BYTES_MAX: usize = 128;
/// The API server cuts warnings off at about this.
const WARNINGS_MAX: usize = 8;

/// What became of a review; the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Injected,
    /// The pod had everything already.
    Unchanged,
    Skipped,
    Rejected,
    /// It was no review of a pod.
    Malformed,
}

impl Outcome {
    pub const ALL: [Self; 5] =
        [Self::Injected, Self::Unchanged, Self::Skipped, Self::Rejected, Self::Malformed];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Rejected => "rejected",
            Self::Malformed => "malformed",
        }
    }
}

/// The answer, and what a log line of it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub outcome: Outcome,
    pub body: Value,
    pub uid: String,
    pub namespace: String,
    pub pod: String,
    /// Why it was skipped or rejected.
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Review {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Debug, Deserialize)]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

/// Answers one review.
///
/// # Errors
/// When the body is no AdmissionReview of version v1; there is no uid to answer to then.
pub fn review(
    body: &[u8],
    scope: Scope,
    template: &Template,
    settings: &Settings,
) -> Result<Answer, String> {
    if body.len() > REVIEW_BYTES_MAX {
        return Err(format!("larger than {REVIEW_BYTES_MAX} bytes"));
    }
    bounded(body)?;
    let review: Review = serde_json::from_slice(body)
        .map_err(|error| format!("no AdmissionReview: {}", shorten(&error.to_string())))?;
    if review.api_version != API_VERSION || review.kind != "AdmissionReview" {
        let (version, kind) = (shorten(&review.api_version), shorten(&review.kind));
        return Err(format!("{version} {kind} is not {API_VERSION} AdmissionReview"));
    }
    let request = review.request;
    if request.uid.is_empty() || request.uid.len() > UID_BYTES_MAX {
        return Err("request.uid is empty or too long".into());
    }
    Ok(answer(request, scope, template, settings))
}

/// Counts maps, lists and what is in them, without reading anything.
fn bounded(body: &[u8]) -> Result<(), String> {
    let (mut containers, mut commas) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => containers += 1,
            b',' if !in_string => commas += 1,
            _ => {}
        }
    }
    if containers > CONTAINERS_MAX || commas > COMMAS_MAX {
        return Err(format!("more than {CONTAINERS_MAX} maps and lists, or {COMMAS_MAX} values"));
    }
    Ok(())
}

fn answer(request: Request, scope: Scope, template: &Template, settings: &Settings) -> Answer {
    let named = |path: &str| request.object.pointer(path).and_then(Value::as_str);
    let pod =
        [Some(request.name.as_str()), named("/metadata/name"), named("/metadata/generateName")];
    let pod = pod.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or("?");
    let mut answer = Answer {
        outcome: Outcome::Skipped,
        body: Value::Null,
        pod: shorten(pod),
        namespace: shorten(&request.namespace),
        uid: request.uid,
        reason: String::new(),
    };
    let kind = &request.kind;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
    let mut response = json!({ "uid": answer.uid, "allowed": true });
    if !is_pod || request.operation != "CREATE" {
        // Not what the webhook is registered for; standing in the way would help nobody.
        answer.outcome = Outcome::Malformed;
        answer.reason = "not the creation of a pod: see the rules of the webhook".into();
        response["warnings"] = json!([answer.reason]);
    } else {
        match decided(&request.object, &request.namespace, scope, template, settings) {
            Ok((outcome, more, reason)) => {
                (answer.outcome, answer.reason) = (outcome, reason);
                if let (Value::Object(response), Value::Object(more)) = (&mut response, more) {
                    response.extend(more);
                }
            }
            Err(reason) => {
                answer.outcome = Outcome::Rejected;
                let message = format!("rdmesh: {reason}");
                response["allowed"] = json!(false);
                response["status"] = json!({
                    "status": "Failure", "message": message, "reason": "Invalid", "code": 422,
                });
                answer.reason = reason;
            }
        }
    }
    response["auditAnnotations"] = json!({ "outcome": answer.outcome.label() });
    answer.body =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    answer
}

fn decided(
    pod: &Value,
    namespace: &str,
    scope: Scope,
    template: &Template,
    settings: &Settings,
) -> Result<(Outcome, Value, String), String> {
    if let Decision::Skip(skip) = decide(pod, namespace, scope, settings)? {
        return Ok((Outcome::Skipped, json!({}), skip.why().to_owned()));
    }
    let patch = patch(pod, template, settings)?;
    let mut more = json!({});
    if !patch.warnings.is_empty() {
        let warnings: Vec<&String> = patch.warnings.iter().take(WARNINGS_MAX).collect();
        more["warnings"] = json!(warnings);
    }
    if patch.operations.is_empty() {
        return Ok((Outcome::Unchanged, more, "it has all parts already".into()));
    }
    more["patchType"] = json!("JSONPatch");
    more["patch"] = json!(base64(json!(patch.operations).to_string().as_bytes()));
    Ok((Outcome::Injected, more, String::new()))
}

/// As JSON carries bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) & 63;
            let shown = if digit <= chunk.len() { DIGITS[index as usize] } else { b'=' };
            text.push(char::from(shown));
        }
    }
    text
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
