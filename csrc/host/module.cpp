// lpd_ext._host: the torch-free host code for Python; the only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"
#include "schedule.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.def("build_info", [] {
    const lpd::host::BuildInfo info = lpd::host::build_info();
    py::dict result;
    result["version"] = info.version;
    result["compiler"] = info.compiler;
    result["flags"] = info.flags;
    result["torch"] = info.torch;
    result["cuda"] = info.cuda;
    return result;
  });
  m.def("group_sizes", &lpd::host::group_sizes, py::arg("seq_len"), py::arg("num_steps"));
}
