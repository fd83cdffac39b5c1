//! Checks the structures that were written by hand in the declarations against the installed
//! headers.

use rdma_sys as ib;
use std::mem::{offset_of, size_of};
use std::process::Command;

macro_rules! structures {
    ($($name:ident { $($field:ident),* })*) => {
        fn ours() -> Vec<(String, usize)> {
            let mut all = Vec::new();
            $(
                all.push((concat!("sizeof(struct ", stringify!($name), ")").to_owned(), size_of::<ib::$name>()));
                $(all.push((
                    concat!("offsetof(struct ", stringify!($name), ", ", stringify!($field), ")").to_owned(),
                    offset_of!(ib::$name, $field),
                ));)*
            )*
            all
        }
    };
}

structures! {
    ibv_wc { wr_id, status, opcode, vendor_err, byte_len, qp_num, wc_flags }
    ibv_sge { addr, length, lkey }
    ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, wr, qp_type }
    ibv_recv_wr { wr_id, next, sg_list, num_sge }
    ibv_qp_attr { qp_state, path_mtu, dest_qp_num, ah_attr, port_num, timeout }
    ibv_qp_init_attr { send_cq, recv_cq, cap, qp_type }
    ibv_ah_attr { grh, dlid, sl, is_global, port_num }
    ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
    ibv_port_attr { state, active_mtu, lid, link_layer }
    ibv_async_event { event_type }
    ibv_mr { lkey }
    ibv_qp { qp_num }
    ibv_comp_channel { fd }
    ibv_context { async_fd }
}

#[test]
fn layouts_are_those_of_the_headers() {
    let ours = ours();
    let mut source = String::from(
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n",
    );
    for (expression, _) in &ours {
        source.push_str(&format!("printf(\"%zu\\n\", (size_t)({expression}));\n"));
    }
    source.push_str("return 0;\n}\n");
    let dir = std::env::temp_dir().join(format!("rdmesh-layout-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (file, program) = (dir.join("layout.c"), dir.join("layout"));
    std::fs::write(&file, source).unwrap();
    let built = Command::new("cc").arg(&file).arg("-o").arg(&program).status().unwrap();
    assert!(built.success());
    let output = Command::new(&program).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let theirs = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<usize> = theirs.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(theirs.len(), ours.len());
    for ((expression, own), header) in ours.iter().zip(theirs) {
        assert_eq!(*own, header, "{expression}");
    }
}
