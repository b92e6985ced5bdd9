// Element types that are known at run time, for the namespace and target of the including file.

// Calls function with a value of the type.
template <class Function>
inline void with_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kBFloat16:
      return function(BFloat16{});
    case Dtype::kFloat16:
      return function(Float16{});
  }
}
