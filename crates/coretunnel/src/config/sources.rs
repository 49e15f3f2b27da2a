//! Where a setting comes from, and how a bad one is reported: flag before variable before default, and every complaint
//! collected.

use std::fmt;

use super::{
    Ignored,
    environment::{Environment, Given},
};

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
pub(crate) enum Origin {
    Flag { name: &'static str, value: String },
    Variable { name: String, value: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag { name, value } => write!(f, "flag {name}={value}"),
            Self::Variable { name, value } => write!(f, "env var {name}={value}"),
        }
    }
}

/// A flag's name and what was given, if anything.
pub(crate) type Flag<'a> = (&'static str, &'a Option<String>);

/// Reads settings one after the other and remembers what was wrong.
pub(crate) struct Reader<'a> {
    environment: &'a Environment,
    errors: Vec<SettingError>,
    ignored: Vec<Ignored>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(environment: &'a Environment) -> Self {
        Self { environment, errors: Vec::new(), ignored: Vec::new() }
    }

    /// The value given by the flag, else by the first variable that is set and not empty; none if it was not given or
    /// cannot be read.
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
                self.complain(origin, cause, accepted);
                None
            }
        }
    }

    /// A setting that only a variable has.
    pub(crate) fn variable<T>(
        &mut self,
        name: &'static str,
        accepted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.setting(None, &[name], accepted, parse)
    }

    /// A setting that is taken as it is.
    pub(crate) fn text(&mut self, flag: Option<Flag<'_>>, variables: &[&'static str]) -> Option<String> {
        self.find(flag, variables).map(|(_, value)| value)
    }

    /// Whether a variable is there without a value, which some take for a word.
    pub(crate) fn is_empty(&self, name: &str) -> bool {
        self.environment.is_empty(name)
    }

    /// Whether this is a container of Kubernetes, as it tells all of them.
    pub(crate) fn in_kubernetes(&self) -> bool {
        self.environment.value("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// The variables whose names begin with `prefix`, with their values; one that is no UTF-8 is complained of.
    pub(crate) fn beginning_with(&mut self, prefix: &str) -> Vec<(String, String)> {
        let names: Vec<String> = self.environment.beginning_with(prefix).map(str::to_owned).collect();
        let mut found = Vec::new();
        for name in names {
            match self.environment.value(&name) {
                Some(Given::Text(value)) => found.push((name, value)),
                Some(Given::NotText(value)) => {
                    self.complain(Origin::Variable { name, value }, "it is no UTF-8", "text");
                }
                None => {}
            }
        }
        found
    }

    /// A variable that is there and has no effect.
    pub(crate) fn ignore(&mut self, ignored: Ignored) {
        self.ignored.push(ignored);
    }

    /// What has no effect.
    pub(crate) fn ignored(&mut self) -> Vec<Ignored> {
        std::mem::take(&mut self.ignored)
    }

    /// A setting that cannot be used.
    pub(crate) fn complain(&mut self, origin: Origin, cause: impl Into<String>, accepted: &str) {
        self.errors.push(SettingError { origin, cause: cause.into(), accepted: accepted.to_owned() });
    }

    /// What was wrong.
    pub(crate) fn errors(self) -> Vec<SettingError> {
        self.errors
    }

    fn find(&mut self, flag: Option<Flag<'_>>, variables: &[&'static str]) -> Option<(Origin, String)> {
        if let Some((name, Some(value))) = flag {
            return Some((Origin::Flag { name, value: value.clone() }, value.clone()));
        }
        let (name, given) = variables.iter().find_map(|name| Some((*name, self.environment.value(name)?)))?;
        let origin = |value| Origin::Variable { name: name.to_owned(), value };
        match given {
            Given::Text(value) => Some((origin(value.clone()), value)),
            Given::NotText(value) => {
                self.complain(origin(value), "it is no UTF-8", "text");
                None
            }
        }
    }
}
