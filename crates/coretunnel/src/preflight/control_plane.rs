//! What the daemon needs of the control plane's side before it can ask anything: names that resolve, roots, a token, and a
//! directory for the warm start. None of it blocks a start, since all of it may come later.

use std::{fs, net::ToSocketAddrs, os::unix::fs::PermissionsExt, path::Path};

use control::grpc::Server;

use super::{Finding, checks::Line, facts::can_make_in};
use crate::config::Settings;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ControlPlane {
    /// Each server that is needed, and what keeps the daemon from talking to it, with the cure.
    servers: Vec<(String, Result<(), Trouble>)>,
    warm_start: Option<WarmStart>,
}

/// What is in the way, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    says: String,
    cure: &'static str,
}

/// The directory of the warm start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WarmStart {
    Missing,
    ReadOnly,
    /// Others may write in it.
    Shared {
        mode: u32,
    },
    Fine,
}

impl ControlPlane {
    /// Reads what the settings name, and asks the resolver.
    pub(super) fn gather(settings: &Settings) -> Self {
        let xds = settings.mesh.control_plane.as_ref().map(|plane| &plane.server);
        let ca = settings.certificates.server.as_ref().filter(|ca| Some(*ca) != xds);
        let server = |server: &Server| (server.address.to_string(), ready_for(server));
        Self {
            servers: xds.into_iter().chain(ca).map(server).collect(),
            warm_start: settings.warm_start.as_ref().map(|warm_start| directory(&warm_start.directory)),
        }
    }
}

fn ready_for(server: &Server) -> Result<(), Trouble> {
    let (host, port) = (server.address.host(), server.address.port());
    (host, port).to_socket_addrs().map_err(|error| Trouble {
        says: format!("{host} cannot be resolved: {error}"),
        cure: "correct --xds-address or --ca-address, or look at the node's DNS; the daemon tries again until it can.",
    })?;
    server.roots.count().map_err(|error| Trouble {
        says: error.to_string(),
        cure: "mount the ConfigMap istio-ca-root-cert, or name the file with XDS_ROOT_CA and CA_ROOT_CA.",
    })?;
    server.token.read().map_err(|error| Trouble {
        says: error.to_string(),
        cure: "mount a service account token with audience istio-ca, or name its file with AUTH_TOKEN.",
    })?;
    Ok(())
}

fn directory(directory: &Path) -> WarmStart {
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => match metadata.permissions().mode() & 0o777 {
            mode if mode & 0o022 != 0 => WarmStart::Shared { mode },
            _ if can_make_in(directory) => WarmStart::Fine,
            _ => WarmStart::ReadOnly,
        },
        _ => WarmStart::Missing,
    }
}

/// A line for the servers, and one for the warm start.
pub(super) fn judge(facts: &ControlPlane, settings: &Settings) -> [Finding; 2] {
    [servers(facts), warm_start(facts, settings)]
}

fn servers(facts: &ControlPlane) -> Finding {
    let line = |found: String| Line::new("control plane", found, "names that resolve, roots and a token");
    let trouble = facts.servers.iter().find_map(|(address, found)| Some((address, found.as_ref().err()?)));
    match trouble {
        Some((address, Trouble { says, cure })) => line(format!("for {address}: {says}")).warning(*cure),
        None if facts.servers.is_empty() => line("none, so nothing is asked of one".to_owned()).good(),
        None => {
            let addresses: Vec<&str> = facts.servers.iter().map(|(address, _)| &**address).collect();
            line(addresses.join(", ")).good()
        }
    }
}

fn warm_start(facts: &ControlPlane, settings: &Settings) -> Finding {
    let directory = settings.warm_start.as_ref().map(|settings| settings.directory.display().to_string());
    let directory = directory.unwrap_or_default();
    let line = |found: String| Line::new("warm start", found, "a directory of the daemon's own, if any");
    match facts.warm_start {
        None => line("that nothing is kept for it".to_owned()).good(),
        Some(WarmStart::Fine) => line(directory).good(),
        Some(WarmStart::Missing) => {
            line(format!("no directory {directory}")).warning("make it, or mount an emptyDir of medium Memory there.")
        }
        Some(WarmStart::ReadOnly) => {
            line(format!("{directory}, where nothing can be made")).warning("chown it to the daemon's user.")
        }
        Some(WarmStart::Shared { mode }) => {
            line(format!("{directory}, where others can write (mode {mode:03o}), who could decide who may connect"))
                .warning(format!("chmod 0700 {directory}."))
        }
    }
}

#[cfg(test)]
mod tests {
    use control::grpc::Roots;

    use super::*;
    use crate::preflight::Verdict;

    #[test]
    fn what_is_missing_of_a_server_is_told_with_its_cure_and_blocks_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| directory.path().join(name);
        fs::write(file("junk.pem"), "junk").expect("written");
        let server = |address: &str, roots: Roots| Server::new(address.parse().expect("an address"), roots);
        let mut tokenless = server("127.0.0.1:15012", Roots::System);
        tokenless.token = control::token::Token::File(file("token"));
        for (server, words) in [
            (server("name.invalid:15012", Roots::System), ["name.invalid", "--xds-address"]),
            (server("127.0.0.1:15012", Roots::File(file("none.pem"))), ["none.pem", "XDS_ROOT_CA"]),
            (server("127.0.0.1:15012", Roots::File(file("junk.pem"))), ["no certificate", "XDS_ROOT_CA"]),
            (tokenless, ["token", "AUTH_TOKEN"]),
        ] {
            let found = ControlPlane { servers: vec![("it".to_owned(), ready_for(&server))], warm_start: None };
            let finding = servers(&found);
            assert_eq!(finding.verdict, Verdict::Warning, "{finding:?}");
            let told = format!("{finding:?}");
            assert!(words.iter().all(|word| told.contains(word)), "{told}");
        }
        let good = vec![("it".to_owned(), ready_for(&server("127.0.0.1:15012", Roots::System)))];
        assert_eq!(servers(&ControlPlane { servers: good, warm_start: None }).verdict, Verdict::Good);
        assert_eq!(servers(&ControlPlane::default()).verdict, Verdict::Good);
    }

    #[test]
    fn a_directory_for_the_warm_start_is_there_writable_and_nobody_elses() {
        let parent = tempfile::tempdir().expect("a directory");
        assert_eq!(directory(&parent.path().join("none")), WarmStart::Missing);
        for (mode, found) in [(0o700, WarmStart::Fine), (0o777, WarmStart::Shared { mode: 0o777 })] {
            fs::set_permissions(parent.path(), fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(directory(parent.path()), found, "{mode:o}");
        }
        fs::write(parent.path().join("file"), "x").expect("written");
        assert_eq!(directory(&parent.path().join("file")), WarmStart::Missing);
    }
}
