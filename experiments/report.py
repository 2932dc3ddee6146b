"""stub"""
def write_report(folders, output, console):
    console.print("done")
