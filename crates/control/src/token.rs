//! The token that proves this proxy to the control plane. A file is read anew for each use: the kubelet replaces it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::whole_file;

/// The longest token. Kubernetes' are about 1 KiB.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Where the token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// Nowhere: requests carry none.
    None,
    /// A file.
    File(PathBuf),
    /// It was given.
    Given(String),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("token file {file}: {source}; is the service account's token mounted there?")]
    File {
        /// Which.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is in it is no token.
    #[error("token file {file}: {cause}")]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        cause: &'static str,
    },
}

impl Token {
    /// The token as it is now.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(&self) -> Result<Option<String>, TokenError> {
        match self {
            Self::None => Ok(None),
            Self::Given(token) => Ok(Some(token.clone())),
            Self::File(file) => read(file).map(Some),
        }
    }
}

/// Without the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
            Self::Given(_) => f.write_str("Given(..)"),
        }
    }
}

fn read(file: &Path) -> Result<String, TokenError> {
    let refused = |source| TokenError::File { file: file.to_owned(), source };
    let content = |cause| TokenError::Content { file: file.to_owned(), cause };
    let text = whole_file::read_text(file, TOKEN_BYTES_MAX).map_err(refused)?;
    match text.trim() {
        "" => Err(content("it is empty")),
        token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(token.to_owned()),
        _ => Err(content("there are spaces, line ends or other signs in it that no token has")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_each_time_and_its_line_end_is_no_part_of_the_token() {
        let directory = tempfile::tempdir().expect("a directory");
        let token = Token::File(directory.path().join("token"));
        for text in ["one", "two\n"] {
            fs::write(directory.path().join("token"), text).expect("written");
            assert_eq!(token.read().expect("there").as_deref(), Some(text.trim()));
        }
        assert_eq!(Token::Given("x".into()).read().expect("given").as_deref(), Some("x"));
        assert_eq!(Token::None.read().expect("none is wanted"), None);
    }

    #[test]
    fn what_is_no_token_is_refused_by_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("token");
        let refused = || {
            let error = Token::File(file.clone()).read().expect_err("bad").to_string();
            assert!(error.contains(&*file.to_string_lossy()), "{error}");
            error
        };
        assert!(refused().contains("mounted"));
        for (text, complaint) in
            [("", "empty"), (" \n", "empty"), ("a b", "signs"), ("a\nb", "signs"), ("\u{e9}", "signs")]
        {
            fs::write(&file, text).expect("written");
            assert!(refused().contains(complaint), "{text:?}");
        }
        fs::write(&file, "x".repeat(70_000)).expect("written");
        assert!(refused().contains("65536"));
    }

    #[test]
    fn no_token_is_printed() {
        assert_eq!(format!("{:?}", Token::Given("secret".into())), "Given(..)");
    }
}
