//! `rdmesh-injector inject`: manifests in, manifests out.

use crate::offline::{Source, inject};
use crate::settings::Settings;
use anyhow::Context;
use rdmesh_config::DOCUMENTS_BYTES_MAX;
use std::io::{Read, Write};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests: one or more YAML documents; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Configuration file (YAML); defaults apply without it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Image of the injected containers, instead of injector.image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Namespace of objects that do not name theirs
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Show what would change, instead of the manifests
    #[arg(long)]
    diff: bool,
}

/// # Errors
/// With all pods that would be rejected; nothing is written then.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { file, config, image, namespace, diff } = args;
    let mut config = super::load(config.as_deref())?;
    if let Some(image) = image {
        config.injector.image = image;
    }
    let template = super::template(&config)?;
    let settings = Settings::new(config)?;
    let (text, origin) = read(file)?;
    let source = Source { text: &text, origin: &origin, namespace: &namespace };
    let injected = inject(source, &template, &settings)?;
    for note in &injected.notes {
        eprintln!("{note}");
    }
    let shown = if diff { injected.diff } else { injected.manifests };
    Ok(std::io::stdout().write_all(shown.as_bytes())?)
}

fn read(file: PathBuf) -> anyhow::Result<(String, String)> {
    let limit = u64::try_from(DOCUMENTS_BYTES_MAX)?.saturating_add(1);
    let (reader, origin): (Box<dyn Read>, String) = if file.as_os_str() == "-" {
        (Box::new(std::io::stdin()), "standard input".into())
    } else {
        let name = file.display().to_string();
        (Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {name}"))?), name)
    };
    let mut text = String::new();
    reader
        .take(limit)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {origin}"))?;
    Ok((text, origin))
}
