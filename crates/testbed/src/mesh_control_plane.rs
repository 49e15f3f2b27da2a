//! The control plane of a mesh: one server that listens in the namespace of each daemon, as a cluster's does on its
//! virtual address. What it serves is the mesh's model; policies are given to its discovery.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::Result;

use crate::ca_server::{CaServer, Root};
use crate::control_plane::{ControlPlane, ServerIdentity};
use crate::daemon::Source;
use crate::mesh::Mesh;
use crate::namespace::Namespace;
use crate::tool;
use crate::wait;
use crate::xds_server::XdsServer;

/// The control plane of a mesh.
pub struct ControlPlaneOfMesh {
    identity: ServerIdentity,
    /// Its discovery.
    pub xds: XdsServer,
    /// Its CA.
    pub ca: CaServer,
    /// `None` while it is away.
    running: Option<ControlPlane>,
    /// Where daemons reach it.
    listeners: Vec<(Namespace, TcpListener)>,
    /// The same in each namespace, of which each is empty: a daemon that starts again finds it where it was.
    port: u16,
}

impl ControlPlaneOfMesh {
    const TOKEN: &str = "token-of-the-node";

    pub(crate) fn start() -> Result<Self> {
        let identity = ServerIdentity::new(&["localhost"])?;
        let (xds, ca) = (XdsServer::default(), CaServer::new(Root::new("the mesh's CA")?));
        ca.require_token(Self::TOKEN);
        let running = Some(ControlPlane::start(&identity, xds.clone(), ca.clone())?);
        Ok(Self { identity, xds, ca, running, listeners: Vec::new(), port: 0 })
    }

    /// Listens in a daemon's namespace, and says how it is reached there.
    pub(crate) fn reached_from(&mut self, namespace: &Namespace) -> Result<Source> {
        let port = self.port;
        let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?;
        let port = listener.local_addr()?.port();
        self.port = port;
        if let Some(running) = &self.running {
            running.listen(listener.try_clone()?)?;
        }
        self.listeners.push((namespace.clone(), listener));
        let (address, root_pem) = (format!("https://localhost:{port}"), self.identity.root_pem().to_owned());
        Ok(Source::ControlPlane { address, root_pem, token: Self::TOKEN.to_owned() })
    }

    /// Waits until certificates for these were issued: readiness does not wait for them, and until then a daemon may
    /// not have its connection to the CA.
    pub(crate) fn await_certificates(&self, identities: BTreeSet<String>, patience: Duration) -> Result<()> {
        wait::until("certificates", patience, || {
            let asked: BTreeSet<String> = self.ca.asked().into_iter().map(|asked| asked.identity).collect();
            identities.is_subset(&asked) && self.ca.in_flight() == 0
        })
    }

    /// Resets every connection to it.
    pub fn disconnect(&self) {
        if let Some(running) = &self.running {
            running.disconnect();
        }
    }

    /// Ends it and its connections; who connects waits.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts it again, with the mesh it had.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn resume(&mut self) -> Result<()> {
        let running = ControlPlane::start(&self.identity, self.xds.clone(), self.ca.clone())?;
        for (_, listener) in &self.listeners {
            running.listen(listener.try_clone()?)?;
        }
        self.running = Some(running);
        Ok(())
    }
}

impl ControlPlaneOfMesh {
    /// Drops whatever it sends to daemons, as a node that lost its power does; nobody is told.
    ///
    /// # Errors
    /// When `iptables-restore` refuses.
    pub fn fall_silent(&self) -> Result<()> {
        self.rule("-A")
    }

    /// The reverse of [`Self::fall_silent`].
    ///
    /// # Errors
    /// When `iptables-restore` refuses.
    pub fn speak_again(&self) -> Result<()> {
        self.rule("-D")
    }

    fn rule(&self, verb: &str) -> Result<()> {
        for (namespace, listener) in &self.listeners {
            let port = listener.local_addr()?.port();
            let rules = format!("*filter\n{verb} INPUT -p tcp --sport {port} -j DROP\nCOMMIT\n");
            namespace.run(|| tool::run_with_input("iptables-restore", &["--noflush"], &rules))?;
        }
        Ok(())
    }
}

impl Mesh {
    /// The control plane.
    ///
    /// # Panics
    /// When the mesh has none: a slip in the test.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlaneOfMesh {
        self.control_plane.as_ref().expect("the mesh was started with one")
    }

    /// The control plane, to end it or start it again.
    ///
    /// # Panics
    /// When the mesh has none: a slip in the test.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlaneOfMesh {
        self.control_plane.as_mut().expect("the mesh was started with one")
    }
}
