//! Where a setting comes from, and how a bad one is reported: flag before variable, and every complaint collected.

use std::fmt;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {origin} ({cause}); accepted: {accepted}")]
pub(crate) struct SettingError {
    origin: Origin,
    cause: String,
    accepted: String,
}

/// Where the value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Flag { name: String, value: String },
    Variable { name: String, value: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag { name, value } => write!(f, "flag {name} {value}"),
            Self::Variable { name, value } => write!(f, "env var {name}={value}"),
        }
    }
}

/// A flag's name and what was given, if anything.
type Flag<'a> = (&'static str, &'a Option<String>);

/// Reads settings one after the other and remembers what was wrong.
pub(crate) struct Reader<'a> {
    environment: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<SettingError>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(environment: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { environment, errors: Vec::new() }
    }

    /// The value given by the flag, else by the first variable that is set and not empty.
    pub(crate) fn setting<T>(
        &mut self,
        flag: Option<Flag<'_>>,
        variables: &[&'static str],
        accepted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (origin, value) = self.find(flag, variables)?;
        match parse(value.trim()) {
            Ok(parsed) => Some(parsed),
            Err(cause) => {
                self.errors.push(SettingError { origin, cause, accepted: accepted.to_owned() });
                None
            }
        }
    }

    /// A setting that is taken as it is.
    pub(crate) fn text(&mut self, flag: Option<Flag<'_>>, variables: &[&'static str]) -> Option<String> {
        self.find(flag, variables).map(|(_, value)| value)
    }

    /// A switch that only a variable has.
    pub(crate) fn boolean(&mut self, variable: &'static str, default: bool) -> bool {
        self.setting(None, &[variable], "true or false", truth).unwrap_or(default)
    }

    /// A variable whose value makes no sense beside others.
    pub(crate) fn complain(&mut self, variable: &str, value: &str, cause: &str) {
        let origin = Origin::Variable { name: variable.to_owned(), value: value.to_owned() };
        self.errors.push(SettingError { origin, cause: cause.to_owned(), accepted: "see --help".to_owned() });
    }

    /// The settings, if nothing was wrong.
    pub(crate) fn finish<T>(self, settings: T) -> Result<T, Vec<SettingError>> {
        if self.errors.is_empty() { Ok(settings) } else { Err(self.errors) }
    }

    fn find(&self, flag: Option<Flag<'_>>, variables: &[&'static str]) -> Option<(Origin, String)> {
        if let Some((name, Some(value))) = flag {
            return Some((Origin::Flag { name: name.to_owned(), value: value.clone() }, value.clone()));
        }
        variables.iter().find_map(|name| {
            let value = (self.environment)(name).filter(|value| !value.is_empty())?;
            Some((Origin::Variable { name: (*name).to_owned(), value: value.clone() }, value))
        })
    }
}

/// Reads a switch.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}
