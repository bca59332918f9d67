//! The layers, and errors that say where the mistake is.

use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};

use super::Config;
use crate::cli::Flags;
use crate::trouble::Trouble;

const USUAL_FILE: &str = "/etc/backstay/backstay.toml";
const PREFIX: &str = "BACKSTAY_";
/// These begin like settings and are none.
const OTHER_VARIABLES: [&str; 15] = [
    "config",
    "postgres_bin",
    "postgres_mirror",
    "crash_at",
    "log_style",
    "server",
    "token",
    "token_file",
    "ca_file",
    // Not a setting, so that nothing that shows settings can show it.
    "secret_keys",
    // What a program is told that the activity `command` runs; it may be this one.
    "run",
    "step",
    "attempt",
    "key",
    "undone_key",
];

/// The settings, and where each comes from.
pub(crate) struct Loaded {
    pub config: Config,
    figment: Figment,
}

impl Loaded {
    /// Where the setting of that name comes from.
    pub(crate) fn origin(&self, key: &str) -> String {
        let metadata = self.figment.find_metadata(key);
        origin(metadata, key)
    }
}

fn origin(metadata: Option<&Metadata>, key: &str) -> String {
    match metadata {
        Some(metadata) if metadata.name == "environment" => {
            let variable = key.to_uppercase().replace('.', "__");
            format!("environment: {PREFIX}{variable}")
        }
        Some(metadata) => metadata.name.to_string(),
        None => "default".into(),
    }
}

/// Reads everything and checks it.
pub(crate) fn load(flags: &Flags, more: &[(&'static str, &'static str, String)]) -> Result<Loaded, Trouble> {
    let mut figment = Figment::from(Named("default".into(), Serialized::defaults(Config::defaults())));
    if let Some(file) = file(flags)? {
        figment = figment.merge(Named(format!("file: {}", file.display()), Toml::file_exact(file)));
    }
    let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    if let Some(url) = given {
        figment = figment.merge(Stated("environment: DATABASE_URL".into(), "database.url", url));
    }
    let given = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|url| !url.is_empty());
    if let Some(url) = given {
        figment =
            figment.merge(Stated("environment: OTEL_EXPORTER_OTLP_ENDPOINT".into(), "traces.endpoint", url));
    }
    let environment = Env::prefixed(PREFIX).ignore(&OTHER_VARIABLES).split("__");
    figment = figment.merge(Named("environment".into(), environment));

    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let log_format = flags.log_format.and_then(|format| {
        clap::ValueEnum::to_possible_value(&format).map(|value| value.get_name().to_owned())
    });
    let stated = [
        ("--data-dir", "data_dir", path(&flags.data_dir)),
        ("--database-url", "database.url", flags.database_url.clone()),
        ("--log", "log.filter", flags.log.clone()),
        ("--log-format", "log.format", log_format),
    ];
    let stated = stated.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value?)));
    for (flag, key, value) in stated.chain(more.iter().cloned()) {
        figment = figment.merge(Stated(format!("flag: {flag}"), key, value));
    }

    loaded(figment)
}

/// A file alone, over the defaults.
pub(crate) fn of_text(toml: &str) -> Result<Loaded, Trouble> {
    let defaults = Figment::from(Named("default".into(), Serialized::defaults(Config::defaults())));
    loaded(defaults.merge(Named("file".into(), Toml::string(toml))))
}

fn loaded(figment: Figment) -> Result<Loaded, Trouble> {
    let mut config: Config = figment.extract().map_err(|errors| wrong(&errors))?;
    config.data_dir = std::path::absolute(&config.data_dir)
        .map_err(|error| Trouble::usage(format!("data_dir: there is no current folder: {error}")))?;
    if !config.workflows.dir.as_os_str().is_empty() {
        config.workflows.dir = std::path::absolute(&config.workflows.dir)
            .map_err(|error| Trouble::usage(format!("workflows.dir: there is no current folder: {error}")))?;
    }
    let loaded = Loaded { config, figment };
    match loaded.config.problem() {
        None => Ok(loaded),
        Some((key, what)) => Err(Trouble::usage(format!("{key} {what} ({}).", loaded.origin(&key)))),
    }
}

fn file(flags: &Flags) -> Result<Option<PathBuf>, Trouble> {
    match &flags.config {
        Some(file) if file.as_os_str().is_empty() => Ok(None),
        Some(file) if file.is_file() => Ok(Some(file.clone())),
        Some(file) => Err(Trouble::usage(format!("There is no configuration file {}.", file.display()))),
        None => Ok(Some(Path::new(USUAL_FILE).to_path_buf()).filter(|file| file.is_file())),
    }
}

/// Every mistake on a line of its own.
fn wrong(errors: &figment::Error) -> Trouble {
    let mut lines = Vec::new();
    for error in errors.clone() {
        let mut key = error.path.join(".");
        if let figment::error::Kind::UnknownField(field, _) = &error.kind
            && !key.ends_with(field.as_str())
        {
            key = if key.is_empty() { field.clone() } else { format!("{key}.{field}") };
        }
        let from = origin(error.metadata.as_ref(), &key);
        let what = match &error.kind {
            figment::error::Kind::UnknownField(_, known) => {
                format!("there is no setting \"{key}\"; there are {}", known.join(", "))
            }
            // What the parser of the file says already names the place.
            kind if key.is_empty() => kind.to_string(),
            kind => format!("{key}: {kind}"),
        };
        lines.push(format!("{what} ({from})."));
    }
    Trouble::usage(format!("The configuration is wrong: {}", lines.join("\n")))
}

/// A layer under a name that people understand.
struct Named<P>(String, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        self.1.data()
    }
}

/// One setting. Its value is a text, whatever it looks like.
struct Stated(String, &'static str, String);

impl Provider for Stated {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let Self(_, key, value) = self;
        let value = figment::util::nest(key, value.clone().into());
        Ok(Profile::Default.collect(value.into_dict().unwrap_or_default()))
    }
}
