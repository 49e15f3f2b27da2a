//! The environment variables of the process, as they were at its start. Read once; nothing asks the process again.

use std::{collections::BTreeMap, ffi::OsString};

/// Names and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// This process's.
    pub(crate) fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// A variable that is set and not empty. An empty one counts as not given: that is how charts leave things out.
    pub(crate) fn value(&self, name: &str) -> Option<Given> {
        let value = self.0.get(&OsString::from(name)).filter(|value| !value.is_empty())?;
        Some(match value.to_str() {
            Some(text) => Given::Text(text.to_owned()),
            None => Given::NotText(value.to_string_lossy().into_owned()),
        })
    }

    /// Whether a variable is set, to nothing.
    pub(crate) fn is_empty(&self, name: &str) -> bool {
        self.0.get(&OsString::from(name)).is_some_and(|value| value.is_empty())
    }

    /// The names that begin with `prefix`, of variables that are not empty.
    pub(crate) fn beginning_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let given = self.0.iter().filter(|(_, value)| !value.is_empty());
        given.filter_map(|(name, _)| name.to_str()).filter(move |name| name.starts_with(prefix))
    }
}

/// A value that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// As nearly always.
    Text(String),
    /// Not UTF-8, with what can be shown of it.
    NotText(String),
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
impl Environment {
    /// With one variable more.
    pub(crate) fn with(mut self, name: &str, value: OsString) -> Self {
        self.0.insert(name.into(), value);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn an_empty_variable_is_not_given_and_one_that_is_no_text_is_told() {
        let environment = Environment::from([("A", "1"), ("B", "")]).with("C", OsString::from_vec(vec![b'x', 0xff]));
        assert_eq!(environment.value("A"), Some(Given::Text("1".to_owned())));
        assert_eq!((environment.value("B"), environment.value("D")), (None, None));
        assert_eq!(["A", "B", "D"].map(|name| environment.is_empty(name)), [false, true, false]);
        assert_eq!(environment.value("C"), Some(Given::NotText("x\u{fffd}".to_owned())));
    }

    #[test]
    fn names_are_found_by_their_beginning() {
        let environment =
            Environment::from([("XDS_HEADER_a", "1"), ("XDS_HEADER_b", ""), ("XDS_HEADERS", "1"), ("Z", "1")]);
        assert_eq!(environment.beginning_with("XDS_HEADER_").collect::<Vec<_>>(), ["XDS_HEADER_a"]);
    }
}
