//! What the tests of this crate share.

use crate::settings::Settings;
use rdmesh_config::Config;

pub(crate) const IMAGE: &str = "example.org/rdmesh:test";

/// Settings from YAML, with an image.
pub(crate) fn settings(yaml: &str) -> Settings {
    let mut config = Config::from_yaml(yaml, "test").unwrap();
    config.injector.image = IMAGE.into();
    Settings::new(config).unwrap()
}
