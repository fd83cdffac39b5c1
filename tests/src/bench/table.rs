//! Medians and ratios of what was measured, as a table.

use super::{Figure, PathKind};

/// Prints one line per figure: each path's median, its ratio to direct and to the HAProxy pair,
/// and how many of its rounds were undisturbed.
pub fn print(figures: &[Figure], paths: &[PathKind]) {
    let mut names: Vec<&str> = Vec::new();
    for figure in figures {
        if !names.contains(&figure.figure) {
            names.push(figure.figure);
        }
    }
    print!("{:<30} {:>6}", "", "unit");
    for path in paths {
        print!(" | {:>10} {:>6} {:>6} {:>5}", path.name(), "/dir", "/hap", "clean");
    }
    println!();
    for name in names {
        let of = |path: PathKind| median(figures, name, path);
        let unit = figures.iter().find(|f| f.figure == name).map_or("", |f| f.unit);
        print!("{name:<30} {unit:>6}");
        let (direct, haproxy) = (of(PathKind::Direct), of(PathKind::Haproxy));
        for path in paths {
            let Some(own) = of(*path) else {
                print!(" | {:>10} {:>6} {:>6} {:>5}", "-", "", "", "");
                continue;
            };
            let ratio = |to: &Option<Median>| {
                to.as_ref().map_or("-".to_owned(), |to| format!("{:.2}", own.value / to.value))
            };
            let clean = format!("{}/{}", own.clean, own.rounds);
            let (to_direct, to_haproxy) = (ratio(&direct), ratio(&haproxy));
            let value = own.value;
            print!(" | {value:>10.2} {to_direct:>6} {to_haproxy:>6} {clean:>5}");
        }
        println!();
    }
    println!(
        "medians; rounds in which others used the machine count only where no other is left \
         (clean: undisturbed of all rounds)"
    );
}

struct Median {
    value: f64,
    clean: usize,
    rounds: usize,
}

fn median(figures: &[Figure], name: &str, path: PathKind) -> Option<Median> {
    let all: Vec<&Figure> = figures.iter().filter(|f| f.figure == name && f.path == path).collect();
    let clean = all.iter().filter(|f| f.clean).count();
    let mut values: Vec<f64> =
        all.iter().filter(|f| f.clean || clean == 0).map(|f| f.value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let value = match values.len() {
        0 => return None,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    Some(Median { value, clean, rounds: all.len() })
}
