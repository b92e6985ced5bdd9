// Functions of a vector, in the namespace and for the target of the including file: include it
// there once, behind vector_<variant>.h.

// 2^x for x < 127, relative error at most 1.5e-7; 0 below -126, NaN stays NaN, 1 of 0 exactly.
inline Vector exp2_below_127(Vector x) {
  const Vector f = fraction(x);
  Vector power = broadcast(0.00186712923f);
  power = multiply_add(power, f, broadcast(0.0090170363f));
  power = multiply_add(power, f, broadcast(0.0557999052f));
  power = multiply_add(power, f, broadcast(0.240164459f));
  power = multiply_add(power, f, broadcast(0.693151295f));
  power = multiply_add(power, f, broadcast(1.0f));
  return scale_by_floor(power, x);
}

// The same with a relative error of at most 8e-5: for what becomes bfloat16.
inline Vector rough_exp2_below_127(Vector x) {
  const Vector f = fraction(x);
  Vector power = broadcast(0.0780245140f);
  power = multiply_add(power, f, broadcast(0.226067171f));
  power = multiply_add(power, f, broadcast(0.695833564f));
  power = multiply_add(power, f, broadcast(0.999925196f));
  return scale_by_floor(power, x);
}
