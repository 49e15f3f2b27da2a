//! A control thread that starts again with what it kept: it does not wait for the control plane, asks it for the difference
//! only, and believes no file that is not its own, whole and young.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use control::{WarmStart, proto::discovery::Resource, proto::security::Authorization};
use testbed::{
    ca_server::CaServer,
    xds_server::{self, XdsServer, policy},
};

use crate::world::{Event, Setting, World, uids, workload};

const HOUR: Duration = Duration::from_secs(3600);

fn resource(name: &str, version: &str) -> Resource {
    let number = name.bytes().fold(1_u8, u8::wrapping_add);
    xds_server::workload(version, workload(name, 0, number))
}

fn deny_all() -> Authorization {
    Authorization { name: "deny".into(), namespace: "shop".into(), scope: 1, action: 1, ..Default::default() }
}

/// One that keeps its mesh of three workloads and a policy, and the file.
fn setting() -> (Setting, PathBuf) {
    let mut setting = Setting::new();
    let directory = setting.file("warm");
    fs::create_dir(&directory).expect("made");
    let file = directory.join("mesh.warm");
    setting.warm_start = Some(WarmStart { directory, age_max: HOUR, program: "this".to_owned() });
    setting.xds().update([resource("a", "1"), resource("b", "1"), resource("c", "1"), policy(&deny_all())], &[]);
    (setting, file)
}

/// Until the mesh is there and kept; then the control plane goes away.
async fn kept_and_alone(world: &mut World, file: &Path) -> (XdsServer, CaServer) {
    world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"] && mesh.policies().count() == 1).await;
    while !file.exists() {
        tokio::task::yield_now().await;
    }
    world.setting.stop_plane()
}

#[test]
fn a_daemon_that_was_killed_has_its_mesh_and_captures_before_the_control_plane_answers() {
    let (setting, file) = setting();
    setting.pod("web");
    setting.run(async |world| {
        kept_and_alone(world, &file).await;
        world.killed_and_started().await;
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"] && mesh.policies().count() == 1).await;
        while !matches!(world.event().await, Event::Up(_)) {}
        assert!(!world.status.pending().contains(&"state manager"));
        assert!(!world.status.xds().connected);
    });
}

#[test]
fn without_a_directory_a_daemon_that_was_killed_waits_for_its_control_plane() {
    let (mut setting, _) = setting();
    setting.warm_start = None;
    setting.pod("web");
    setting.run(async |world| {
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"] && mesh.policies().count() == 1).await;
        let (xds, ca) = world.setting.stop_plane();
        world.killed_and_started().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(world.unread().is_empty(), "nothing is known and nobody captured");
        world.setting.start_plane(xds, ca);
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"]).await;
    });
}

#[test]
fn after_a_warm_start_the_control_plane_sends_the_difference_only_and_what_it_has_no_more_goes() {
    let (setting, file) = setting();
    setting.run(async |world| {
        let (_, ca) = kept_and_alone(world, &file).await;
        let whole = world.status.xds().message_bytes[0];
        world.killed_and_started().await;
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"]).await;
        let other = XdsServer::default();
        other.update([resource("a", "1"), resource("b", "2"), resource("d", "1")], &[]);
        world.setting.start_plane(other, ca);
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "d"] && mesh.policies().count() == 0).await;
        let first = &world.xds().requests()[0].request;
        let mut told: Vec<&str> = first.initial_resource_versions.keys().map(|name| &name[name.len() - 1..]).collect();
        told.sort_unstable();
        assert_eq!(told, ["a", "b", "c"], "the versions that were kept");
        let difference = world.status.xds().message_bytes[0];
        assert!(difference < whole, "two of three and a name: {difference} of {whole}");
    });
}

#[test]
fn what_changed_last_is_kept_by_a_daemon_that_ends_and_the_next_change_by_one_that_started_warm() {
    let (setting, file) = setting();
    setting.run(async |world| {
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"] && mesh.policies().count() == 1).await;
        while !file.exists() {
            tokio::task::yield_now().await;
        }
        // Seconds before the next writing is due.
        world.xds().update([resource("d", "1")], &[]);
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c", "d"]).await;
        world.xds().until(|xds| xds.answers().len() == 3).await;
        world.setting.stop_plane();
        world.ended_and_started().await;
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c", "d"]).await;
    });
}

/// That one that is too old is passed over is shown where the time is an argument, in `control`.
#[test]
fn a_file_that_is_damaged_or_of_another_cluster_is_passed_over_and_nothing_of_it_is_believed() {
    type Spoil = fn(&mut World, &Path);
    let rows: [(&str, Spoil, usize); 5] = [
        // The negative control.
        ("nothing", |_, _| {}, 3),
        (
            "cut",
            |_, file| {
                let bytes = fs::read(file).expect("it is there");
                fs::write(file, &bytes[..bytes.len() - 5]).expect("written");
            },
            0,
        ),
        (
            "a bit",
            |_, file| {
                let mut bytes = fs::read(file).expect("it is there");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(file, bytes).expect("written");
            },
            0,
        ),
        ("another cluster", |world, _| world.setting.server.cluster = "east".into(), 0),
        ("what is fetched on demand is not kept", |world, _| world.setting.on_demand = true, 0),
    ];
    for (what, spoil, told) in rows {
        let (setting, file) = setting();
        setting.run(async |world| {
            let (_, ca) = kept_and_alone(world, &file).await;
            spoil(world, &file);
            world.killed_and_started().await;
            let other = XdsServer::default();
            other.update([policy(&deny_all())], &[]);
            world.setting.start_plane(other, ca);
            world.xds().until(|xds| xds.requests().len() >= 2).await;
            let first = &world.xds().requests()[0].request;
            assert_eq!(first.initial_resource_versions.len(), told, "{what}");
            let believed =
                |event: &Event| matches!(event, Event::Snapshot(snapshot) if snapshot.workloads().count() > 0);
            assert_eq!(world.unread().iter().any(believed), told > 0, "{what}");
        });
    }
}
