//! `rdmesh-injector check-config`.

use crate::annotations::Overrides;
use crate::settings::Settings;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The YAML file to check
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// # Errors
/// With all faults of the file, or what the template lacks.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { file } = args;
    let config = super::load(Some(&file))?;
    let effective = config.to_yaml();
    let template = super::template(&config)?;
    let settings = Settings::new(config)?;
    let values = settings.values(&Overrides::default()).map_err(anyhow::Error::msg)?;
    template.fill(&values).map_err(anyhow::Error::msg)?;
    Ok(std::io::stdout().write_all(effective.as_bytes())?)
}
