//! `make bench`: the suite; `make bench-docs` puts its last report into the documents.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use rdmesh_tests::suite::{self, Options, Run, USAGE, compare, plot, report};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::process::ExitCode;

const RESULTS: &str = "results.jsonl";
const REPORT: &str = "report.md";
const DOCS: &str = "docs/bench";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}\n       bench docs DIR");
        return Ok(ExitCode::SUCCESS);
    }
    if let [word, dir] = arguments.as_slice()
        && word == "docs"
    {
        docs(Path::new(dir))?;
        return Ok(ExitCode::SUCCESS);
    }
    let command = format!("make bench ARGS='{}'", arguments.join(" ")).replace(" ARGS=''", "");
    let options = Options::parse(arguments.into_iter())?;
    let old = options.compare.as_deref().map(Run::read).transpose()?;
    // The idle connections, both ends of them.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raise the limit on open files")?;
    let run = suite::run(&options, |run| keep(run, &options.out, &command))?;
    println!("{}\n{}", report::headline(&run), options.out.join(REPORT).display());
    if let Some(old) = old {
        let (text, worse) = compare::show(&compare::changes(&old, &run));
        print!("\nsince the older run:\n{text}");
        return Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(run: &Run, out: &Path, command: &str) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    run.write(&out.join(RESULTS))?;
    let plots = plot::write(run, out)?;
    let path = out.join(REPORT);
    std::fs::write(&path, report::write(run, &plots, command))
        .with_context(|| format!("write {}", path.display()))
}

/// Puts report and plots (drawn anew) of `dir` into the documents, and the short table into the README.
/// The results, more than a megabyte for all sizes, stay where they are.
fn docs(dir: &Path) -> Result<()> {
    let run = Run::read(&dir.join(RESULTS))?;
    if run.figures.is_empty() {
        bail!("{} has no figures", dir.join(RESULTS).display());
    }
    plot::write(&run, dir)?;
    std::fs::create_dir_all(DOCS).with_context(|| format!("create {DOCS}"))?;
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name() == RESULTS {
            continue;
        }
        std::fs::copy(entry.path(), Path::new(DOCS).join(entry.file_name()))
            .with_context(|| format!("copy {}", entry.path().display()))?;
    }
    let readme = std::fs::read_to_string("README.md").context("read README.md")?;
    let readme = report::replace_between(&readme, "bench", &report::headline(&run))?;
    std::fs::write("README.md", readme).context("write README.md")
}
